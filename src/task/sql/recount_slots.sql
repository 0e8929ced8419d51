update convoke.agents g set slots_used = (
    select count(*) from convoke.assignments a
    where a.agent_id = g.id and a.ended_at is null and a.state in ('awarded', 'running')
)
where g.id = any($1)
