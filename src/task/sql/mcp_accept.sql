-- Accepts what a server says now, if it is still what was read.
update convoke.mcp_pins set sha256 = seen_sha256, body = seen_body, accepted_at = clock_timestamp(),
    seen_sha256 = null, seen_body = null, seen_at = null
where agent_id = $1 and server = $2 and tool = $3 and seen_sha256 = $4
