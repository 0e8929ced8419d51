update convoke.agents set status = 'gone', last_seen_at = clock_timestamp()
where status = 'present' and not id = any($1) and (kind <> 'remote' or node_id is distinct from $2::uuid)
