select agent_id, server, tool, sha256, body, seen_sha256, seen_body from convoke.mcp_pins
where ($1::text is null or agent_id = $1) and ($2::text is null or server = $2) and ($3::text is null or tool = $3)
order by agent_id, server, tool
