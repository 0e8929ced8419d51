//! The invariants of the tables (`docs/spec/negotiation.md` §7), as queries for violations.

/// `<name>: <invariant>`, and a query whose rows are the violations.
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
        "I3: nothing happens after the end but orphan results and a requeue",
        "select e.task_id::text from convoke.events e join convoke.events last on last.task_id = e.task_id
             and last.seq < e.seq and last.body ->> 'state' in ('completed', 'failed', 'canceled')
         where e.type not in ('orphan_result', 'requeued') and not exists (
             select 1 from convoke.events r where r.task_id = e.task_id and r.type = 'requeued'
                 and r.seq > last.seq and r.seq < e.seq)",
    ),
    (
        "I4: what is reserved and spent is within the limit",
        "select b.task_id::text from convoke.budgets b
         where b.tokens_reserved + b.tokens_spent > b.tokens_max
             or b.microdollars_reserved + b.microdollars_spent > b.microdollars_max",
    ),
    (
        "C5: a charge is the sum of the questions that its assignment asked models",
        "select q.task_id::text from (
             select m.assignment_id, m.task_id, sum(m.tokens) as tokens, sum(m.microdollars) as microdollars
             from convoke.model_questions m join convoke.assignments a on a.id = m.assignment_id
             where a.ended_at is not null group by 1, 2) q
         left join convoke.charges c on c.assignment_id = q.assignment_id
         where coalesce(c.state, 'spent') <> 'reserved' and (coalesce(c.tokens, 0) <> least(q.tokens, 9e18)
             or coalesce(c.microdollars, 0) <> least(q.microdollars, 9e18))",
    ),
    (
        "C5: the questions of an assignment that is over have ended",
        "select m.task_id::text from convoke.model_questions m join convoke.assignments a on a.id = m.assignment_id
         where m.state = 'sent' and a.ended_at is not null",
    ),
    (
        "C5: what is counted as spent of a task is the sum of its charges and of its questions since",
        "select t.id::text from (
             select task_id, -tokens as tokens, -microdollars as microdollars from convoke.spend
             where task_id <> '00000000-0000-0000-0000-000000000000'
             union all
             select task_id, tokens, microdollars from convoke.charges where state <> 'reserved'
             union all
             select m.task_id, m.tokens, m.microdollars from convoke.model_questions m
             where m.state <> 'sent' and not exists (select from convoke.charges c
                 where c.assignment_id = m.assignment_id and c.state <> 'reserved')) used
         join convoke.tasks t on t.id = used.task_id
         group by t.id having sum(used.tokens) <> 0 or sum(used.microdollars) <> 0",
    ),
    (
        "I5: slots used are live assignments and not more than there are",
        "select g.id from convoke.agents g where g.slots_used <> (
             select count(*) from convoke.assignments a where a.agent_id = g.id
                 and a.ended_at is null and a.state in ('awarded', 'running') and a.incarnation = g.incarnation)
             or g.slots_used > g.slots",
    ),
    (
        "I6: every task that is not final has a due time, is ready, or waits for a task that will wake it",
        "select t.id::text from convoke.tasks t
         where t.state not in ('completed', 'failed', 'canceled', 'open') and t.due_at is null
             and not exists (select 1 from convoke.tasks d
                 where (d.id = any(t.depends_on) or d.id = t.verifier_id) and d.followed
                     and t.state in ('blocked', 'verifying'))",
    ),
    (
        "I7: no part outlives a task that was canceled or failed, unless it is detached",
        "select c.id::text from convoke.tasks c join convoke.tasks p on p.id = c.parent_id
         where p.state in ('failed', 'canceled') and not p.has_children and not c.detached
             and c.state not in ('canceling', 'completed', 'failed', 'canceled')",
    ),
    (
        "state: a task has a live assignment exactly while it is with an agent or waits for an answer to one",
        "select t.id::text from convoke.tasks t
         where (t.state in ('awarded', 'running', 'waiting', 'verifying', 'canceling')) <> exists (
             select 1 from convoke.assignments a
             where a.task_id = t.id and a.ended_at is null)",
    ),
    (
        "state: the live assignment of a task that waits holds no slot",
        "select t.id::text from convoke.tasks t join convoke.assignments a on a.task_id = t.id
         where a.ended_at is null
             and (t.state in ('waiting', 'verifying')) <> (a.state = 'waiting')",
    ),
];
