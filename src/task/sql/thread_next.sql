-- These tasks have ended: makes the next of each thread due, if it waits for its turn. If it is under way, as a part
-- that came later is, its end is told to the one behind it. One that is locked is on its way into or out of that wait;
-- its own due time moves it.
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
