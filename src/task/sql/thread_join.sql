-- Appends a task to a thread of its agent: at the end, or within its nearest live ancestor in the thread. A task that is in
-- a thread of this agent stays there, also if the definition would choose another thread now. The caller holds the lock
-- of the thread.
with recursive ancestors(id, depth) as (
    select parent_id, 1 from convoke.tasks where id = $2 and parent_id is not null
    union all
    select t.parent_id, a.depth + 1 from ancestors a join convoke.tasks t on t.id = a.id where t.parent_id is not null
),
nearest as (
    select e.path from ancestors a join convoke.thread_tasks e on e.task_id = a.id join convoke.tasks t on t.id = a.id
    where e.agent_id = $4 and e.thread = $5 and t.state not in ('completed', 'failed', 'canceled')
    order by a.depth limit 1
)
insert into convoke.thread_tasks as e (task_id, agent_id, thread, within)
select a.task_id, a.agent_id, $5::text, coalesce((select path from nearest), '{}') from convoke.assignments a
where a.id = $1 and a.task_id = $2 and a.epoch = $3 and a.agent_id = $4 and a.state = 'running'
on conflict (task_id) do update set agent_id = excluded.agent_id, thread = excluded.thread, place = default, waits = 0,
    within = excluded.within
where e.agent_id <> excluded.agent_id
