select greatest(0, extract(epoch from at - clock_timestamp()) * 1000)::bigint as wait_ms
from (select least(
    (select min(due_at) from convoke.bursts where due_at is not null),
    (select min(due_at) from convoke.tasks where due_at is not null),
    (select min(deadline_at) from convoke.tasks
        where deadline_at is not null and state not in ('completed', 'failed', 'canceled')),
    -- The end of a task that concerns others is due at once.
    (select clock_timestamp() where exists (
        select from convoke.tasks where followed and state in ('completed', 'failed', 'canceled'))),
    (select clock_timestamp() where exists (
        select from convoke.tasks where has_children and state in ('canceling', 'failed', 'canceled')))
) as at) soonest
where at is not null
