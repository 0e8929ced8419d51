update convoke.assignments set lease_until = greatest(lease_until, clock_timestamp() + greatest(0, least(lease_ms, 15000)) * interval '1 ms')
where ended_at is null and state = 'running'
