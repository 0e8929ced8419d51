select version, hash, applied_at, body from convoke.definition_versions where agent_id = $1 order by version desc
