select t.id, t.org, t.state, t.root_id, t.deadline_at, a.id as assignment_id, a.epoch, a.agent_id
from convoke.tasks t
-- Lateral with a limit, so that the plan reads by key. A plain join may read all live assignments.
left join lateral (
    select * from convoke.assignments
    where task_id = t.id and ended_at is null and state in ('awarded', 'running') limit 1
) a on true
where t.id = any($1)
order by t.id for update of t
