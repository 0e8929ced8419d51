-- A hashed subplan. With a generic plan `<> all` would scan the array for each row, in quadratic time: half a
-- minute for 100,000 agents.
update convoke.agents set status = 'gone', last_seen_at = clock_timestamp()
where status = 'present' and id not in (select unnest($1::text[])) and (kind <> 'remote' or node_id is distinct from $2::uuid)
