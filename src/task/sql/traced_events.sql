-- The newest 100 events of each of these tasks, without bodies.
select e.task_id, e.type, e.agent_id, e.epoch, e.at
from unnest($1::uuid[]) as of(id) cross join lateral (
    select e.* from convoke.events e where e.task_id = of.id order by e.seq desc limit 100
) e
order by e.task_id, e.seq
