-- Finds the nearest live task before a task in its thread, without its ancestors, and marks it as followed, so that the
-- arbiter finds its end. No such task: it is its turn. `marked` is false if that task has ended since this statement
-- began: ask again.
with mine as (
    select e.* from convoke.thread_tasks e join convoke.assignments a on a.task_id = e.task_id
    where a.id = $1 and a.task_id = $2 and a.epoch = $3 and a.agent_id = $4 and a.state = 'running'
),
before as (
    select t.id from mine m
    join convoke.thread_tasks e on e.agent_id = m.agent_id and e.thread = m.thread and e.path < m.path
        and e.path <> m.path[1:cardinality(e.path)]
    join convoke.tasks t on t.id = e.task_id
    where t.state not in ('completed', 'failed', 'canceled')
    order by e.path desc limit 1
),
marked as (
    update convoke.tasks t set followed = true from before b
    where t.id = b.id and t.state not in ('completed', 'failed', 'canceled')
    returning t.id
),
waiting as (
    update convoke.thread_tasks e set waits = e.waits + 1 from marked where e.task_id = $2
    returning e.waits
)
select (select id from before) as before, exists (select from marked) as marked,
    coalesce((select waits from waiting), 0) as waits
from mine
