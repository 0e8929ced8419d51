select a.id as assignment_id, a.agent_id, a.state in ('awarded', 'running') as holds_slot from convoke.assignments a
where a.task_id = any($1) and a.ended_at is null
