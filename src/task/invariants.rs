//! What must hold at every moment (`reference/negotiation.md` §7), as queries that find what breaks it.

/// `<name>: <what holds>`, and a query whose rows say where it does not.
pub const INVARIANTS: &[(&str, &str)] = &[
    (
        "I1: at most one live assignment a task",
        "select task_id::text from convoke.assignments where state in ('awarded', 'running', 'waiting')
         group by task_id having count(*) > 1",
    ),
    (
        "I2: the accepted result is of the last award",
        "select t.id::text from convoke.tasks t where t.state = 'completed' and not exists (
             select 1 from convoke.assignments a
             where a.task_id = t.id and a.epoch = t.epoch and a.state = 'finished')",
    ),
    (
        "I3: nothing happens after the end but orphan results",
        "select e.task_id::text from convoke.events e join convoke.events last on last.task_id = e.task_id
             and last.seq < e.seq and last.body ->> 'state' in ('completed', 'failed', 'canceled')
         where e.type <> 'orphan_result'",
    ),
    (
        "I4: what is reserved and spent is within the limit",
        "select t.id::text from convoke.tasks t where t.budget is not null
             and coalesce((t.budget -> 'reserved' ->> 'microdollars')::bigint, 0)
                 + coalesce((t.budget -> 'spent' ->> 'microdollars')::bigint, 0)
                 > (t.budget -> 'limit' ->> 'microdollars')::bigint",
    ),
    (
        "I5: slots used are live assignments and not more than there are",
        "select g.id from convoke.agents g where g.slots_used <> (
             select count(*) from convoke.assignments a where a.agent_id = g.id
                 and a.state in ('awarded', 'running', 'waiting') and a.incarnation = g.incarnation)
             or g.slots_used > g.slots",
    ),
    (
        "I6: every task that is not final has a due time, is ready, or has a live owner",
        "select t.id::text from convoke.tasks t
         where t.state not in ('completed', 'failed', 'canceled', 'open') and t.due_at is null",
    ),
    (
        "state: a task is awarded, running or canceling exactly while it has a live assignment",
        "select t.id::text from convoke.tasks t
         where (t.state in ('awarded', 'running', 'canceling')) <> exists (
             select 1 from convoke.assignments a
             where a.task_id = t.id and a.state in ('awarded', 'running', 'waiting'))",
    ),
];
