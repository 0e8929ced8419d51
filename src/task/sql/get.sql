select t.id, t.org, t.kind, t.requires, t.input, t.requester, t.state, t.state_reason, t.priority, t.round, t.epoch,
    t.attempt, t.attempts_max, t.agent_id, t.result, t.error, t.created_at, t.updated_at, t.deadline_at,
    t.run_at, t.parent_id, t.root_id, t.depends_on, t.question,
    (select a.progress from convoke.assignments a where a.task_id = t.id and a.epoch = t.epoch) as progress
from convoke.tasks t where t.id = $1
