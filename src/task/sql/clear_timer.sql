update convoke.tasks set due_at = null where id = any($1) and state in ('blocked', 'verifying')
