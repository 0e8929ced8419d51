-- The assignments of these tasks that have ended.
select a.task_id, a.id, a.agent_id, a.state, a.epoch, a.awarded_at, a.started_at, a.ended_at
from convoke.assignments a where a.task_id = any($1::uuid[]) and a.ended_at is not null order by a.task_id, a.epoch
