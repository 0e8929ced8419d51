select a.id, a.epoch, a.agent_id, a.state, a.awarded_at, a.started_at, a.ended_at, a.outcome,
    a.confirm_by, a.lease_until, a.progress_at, a.attempt_deadline_at, a.progress, a.activity, c.state as charge,
    c.tokens, c.microdollars
from convoke.assignments a left join convoke.charges c on c.assignment_id = a.id where a.task_id = $1 order by a.epoch
