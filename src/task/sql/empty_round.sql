with input as (
    select * from unnest($1::uuid[], $2::integer[], $3::bigint[], $4::jsonb[])
    as i(task_id, round, backoff_ms, reasons)
),
moved as (
    update convoke.tasks t set round = i.round, rounds_empty = t.rounds_empty + 1, bids_close_at = null,
        unattended_since = coalesce(t.unattended_since, clock_timestamp()),
        -- Jitter of a fifth, so that many tasks do not retry at once.
        due_at = clock_timestamp() + i.backoff_ms * (0.8 + 0.4 * random()) * interval '1 ms', updated_at = clock_timestamp(),
        version = t.version + 1
    from input i where t.id = i.task_id and t.state = 'open'
    returning t.id, t.org, t.epoch, t.due_at, i.round, i.reasons
)
insert into convoke.events (org, task_id, epoch, type, body)
select org, id, epoch, 'no_offers', jsonb_build_object('round', round, 'again_at', due_at, 'reasons', reasons)
from moved
