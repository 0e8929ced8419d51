select task_id, org, agent_id, epoch, type, body from convoke.events where task_id = any($1) order by task_id, seq
