-- Assignments of an org ($1) that touch the range $2 to $3, the newest first: those of tasks that were requested at most
-- an hour before the range ($4: their lowest id), of the newest 100,000 tasks, and those that have not ended.
with near as (
    select r.id from convoke.tasks r where r.id >= $4::uuid order by r.id desc limit 100000
),
found as (
    select a.id from near n join convoke.assignments a on a.task_id = n.id
    union
    select b.id from convoke.assignments b where b.ended_at is null
)
select jsonb_build_object('assignment_id', a.id, 'task_id', a.task_id, 'agent_id', a.agent_id, 'epoch', a.epoch,
    'state', a.state, 'awarded_at', a.awarded_at, 'started_at', a.started_at, 'ended_at', a.ended_at,
    'progress', a.progress, 'kind', t.kind) as bar
from found f join convoke.assignments a on a.id = f.id join convoke.tasks t on t.id = a.task_id
where t.org = $1 and a.awarded_at < $3::timestamptz and (a.ended_at is null or a.ended_at >= $2::timestamptz)
    and ($5::text[] is null or a.agent_id = any($5))
order by a.awarded_at desc, a.id limit 5001
