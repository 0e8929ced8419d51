select id from convoke.tasks where id = any($1) order by id for update
