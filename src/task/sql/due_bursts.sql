select trigger, key from convoke.bursts where due_at <= (select clock_timestamp()) order by due_at limit 200
