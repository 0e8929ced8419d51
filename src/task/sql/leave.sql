update convoke.agents set status = 'gone', last_seen_at = clock_timestamp()
where id = $1 and incarnation = $2 and status = 'present'
returning id
