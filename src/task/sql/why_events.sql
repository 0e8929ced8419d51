select type, agent_id, epoch, at, body from convoke.events
where task_id = $1 and type in ('announced', 'awarded', 'no_offers') order by seq limit $2
