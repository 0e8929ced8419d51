-- The last results of a thread before a task, newest first.
select t.id, t.kind, left(t.result::text, $2) as result, length(t.result::text) > $2 as cut
from convoke.thread_tasks m
join convoke.thread_tasks e on e.agent_id = m.agent_id and e.thread = m.thread and e.path < m.path
join convoke.tasks t on t.id = e.task_id
where m.task_id = $1 and t.state = 'completed'
order by e.path desc limit $3
