select id from convoke.tasks
where deadline_at <= (select clock_timestamp()) and state not in ('completed', 'failed', 'canceled')
order by deadline_at, id limit 200 for update skip locked
