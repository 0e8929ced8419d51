select seq, at, task_id, agent_id, epoch, type, body from convoke.events
where task_id = $1 and seq > $2 order by seq limit $3
