select t.id, t.requires, t.priority, t.deadline_at, t.requester, left(t.input::text, $2) as input_preview
from convoke.tasks t where t.id = any($1)
