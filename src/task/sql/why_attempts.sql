select a.id, a.epoch, a.agent_id, a.state, a.awarded_at, a.started_at, a.ended_at, a.outcome
from convoke.assignments a where a.task_id = $1 order by a.epoch
