delete from convoke.memories where org = $1 and agent_id = $2 and key = $3 returning version
