select id, state from convoke.tasks where id = any($1)
