-- Makes tasks due that are due at infinity: unreadable ones end, others wait for at most a century.
update convoke.tasks set due_at = clock_timestamp()
where due_at >= '10000-01-01 00:00:00+00' and state not in ('completed', 'failed', 'canceled')
