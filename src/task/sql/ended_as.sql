select a.state as ended_as, t.id, t.version, t.org, t.kind, t.state, t.state_reason, t.epoch, t.agent_id, t.requester
from convoke.assignments a join convoke.tasks t on t.id = a.task_id
where a.id = $1 and a.task_id = $2 and a.agent_id = $3 and a.epoch = $4
