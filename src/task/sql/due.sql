select id from convoke.tasks where due_at <= (select clock_timestamp()) order by due_at, id limit 200 for update skip locked
