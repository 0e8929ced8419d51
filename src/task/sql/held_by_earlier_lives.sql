select a.task_id from convoke.assignments a join convoke.agents g on g.id = a.agent_id
where a.ended_at is null and a.state in ('awarded', 'running')
    and (a.incarnation < g.incarnation or g.status = 'gone')
