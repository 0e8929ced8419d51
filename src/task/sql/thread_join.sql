-- Gives a task its place in a thread, behind all others, unless it has one. The caller holds the lock of the thread.
insert into convoke.thread_tasks as e (task_id, agent_id, thread)
select a.task_id, a.agent_id, $5::text from convoke.assignments a
where a.id = $1 and a.task_id = $2 and a.epoch = $3 and a.agent_id = $4 and a.state = 'running'
on conflict (task_id) do update set agent_id = excluded.agent_id, thread = excluded.thread, place = default, waits = 0
where e.agent_id <> excluded.agent_id or e.thread <> excluded.thread
