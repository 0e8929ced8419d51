-- Each row: an invariant of the negotiation and how many rows break it (none, on a sound database).
select 'I1' as name, 'at most one live assignment a task' as told, count(*) as broken
from (
    select task_id from convoke.assignments where state in ('awarded', 'running', 'waiting')
    group by task_id having count(*) > 1
) as twice
union all
select 'I2', 'the accepted result is of the last award', count(*)
from convoke.tasks t
where t.state = 'completed' and not exists (
    select from convoke.assignments a where a.task_id = t.id and a.state = 'finished' and a.epoch = t.epoch)
union all
select 'I3', 'nothing happens after the end but orphan results', count(*)
from convoke.events e
join convoke.tasks t on t.id = e.task_id
where t.state in ('completed', 'failed', 'canceled') and e.type <> 'orphan_result' and e.at > t.updated_at + interval '1 s'
union all
select 'I4', 'reserved and spent are within the limit', count(*)
from convoke.tasks t
where t.budget is not null
    and coalesce((t.budget -> 'reserved' ->> 'microdollars')::bigint, 0)
        + coalesce((t.budget -> 'spent' ->> 'microdollars')::bigint, 0)
        > (t.budget -> 'limit' ->> 'microdollars')::bigint
union all
select 'I5', 'slots used are live assignments, and within the slots', count(*)
from convoke.agents g
where g.slots_used > g.slots or g.slots_used <> (
    select count(*) from convoke.assignments a
    where a.agent_id = g.id and a.state in ('awarded', 'running', 'waiting'))
union all
select 'I6', 'whatever is not final has a due time or a live owner', count(*)
from convoke.tasks t
where t.state not in ('completed', 'failed', 'canceled', 'blocked', 'open', 'waiting') and t.due_at is null and not exists (
    select from convoke.assignments a where a.task_id = t.id and a.state in ('awarded', 'running', 'waiting'))
order by name
