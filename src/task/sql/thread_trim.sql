-- Removes the tasks of a thread that have ended and are of no use: all but the last that have a result.
delete from convoke.thread_tasks where task_id in (
    select e.task_id from convoke.thread_tasks e join convoke.tasks t on t.id = e.task_id
    where e.agent_id = $1 and e.thread = $2 and t.state in ('completed', 'failed', 'canceled')
        and e.task_id not in (
            select l.task_id from convoke.thread_tasks l join convoke.tasks d on d.id = l.task_id
            where l.agent_id = $1 and l.thread = $2 and d.state = 'completed'
            order by l.path desc limit $3)
    -- A task that is being deleted takes its row along.
    for update of e skip locked)
