select t.id, t.input, t.attempt, (
    select a.checkpoint from convoke.assignments a
    where a.task_id = t.id and a.checkpoint is not null order by a.epoch desc limit 1
) as checkpoint
from convoke.tasks t where t.id = $1
