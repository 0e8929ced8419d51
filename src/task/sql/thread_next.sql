-- Wakes the threads of tasks that have ended. If the next live task of a thread waits for its turn, it is made due. If it
-- runs already (a part that joined late), it is marked as followed, so that its own end wakes the thread again. A locked
-- row is skipped: its task is entering or leaving that wait, and has a due time of its own.
with next as (
    select n.task_id from convoke.thread_tasks e
    cross join lateral (
        select f.task_id from convoke.thread_tasks f join convoke.tasks w on w.id = f.task_id
        where f.agent_id = e.agent_id and f.thread = e.thread and f.path > e.path
            and w.state not in ('completed', 'failed', 'canceled')
        order by f.path limit 1
    ) n
    where e.task_id = any($1)
),
locked as (
    select t.id, t.state = 'open' and t.bids_close_at is null and t.due_at > clock_timestamp() as waits
    from convoke.tasks t where t.id in (select task_id from next)
    order by t.id for update skip locked
)
update convoke.tasks t set due_at = case when l.waits then clock_timestamp() else t.due_at end,
    followed = t.followed or not l.waits
from locked l where t.id = l.id
