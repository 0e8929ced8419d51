-- Times may be infinite, and their differences are errors: limited to a minute, which is longer than any poll pause.
select (extract(epoch from least(greatest(soonest.at, now.at), now.at + interval '1 minute') - now.at) * 1000)::bigint as wait_ms
from (select least(
    (select min(due_at) from convoke.bursts where due_at is not null),
    (select min(due_at) from convoke.tasks where due_at is not null),
    (select min(deadline_at) from convoke.tasks
        where deadline_at is not null and state not in ('completed', 'failed', 'canceled')),
    -- The end of a marked task is due at once.
    (select clock_timestamp() where exists (
        select from convoke.tasks where followed and state in ('completed', 'failed', 'canceled'))),
    (select clock_timestamp() where exists (
        select from convoke.tasks where has_children and state in ('canceling', 'failed', 'canceled')))
) as at) soonest cross join (select clock_timestamp() as at) now
where soonest.at is not null
