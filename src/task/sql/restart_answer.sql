select t.id, t.input, t.attempt, t.deadline_at, t.answers, t.rejected, t.priority, t.traceparent,
    exists (select from convoke.charges c join convoke.assignments a on a.id = c.assignment_id
        where a.task_id = t.id and a.epoch = $2 and c.state = 'reserved') as budgeted, (
    select a.checkpoint from convoke.assignments a
    where a.task_id = t.id and a.checkpoint is not null and a.epoch < $2 order by a.epoch desc limit 1
) as checkpoint
from convoke.tasks t where t.id = $1
