select t.id, t.org, t.state, t.root_id, t.deadline_at, a.id as assignment_id, a.epoch, a.agent_id
from convoke.tasks t
left join convoke.assignments a on a.task_id = t.id and a.ended_at is null and a.state in ('awarded', 'running')
where t.id = any($1)
order by t.id for update of t
