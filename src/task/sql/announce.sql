with input as (
    select * from unnest($1::uuid[], $2::integer[], $3::bigint[], $4::jsonb[], $5::jsonb[])
    as i(task_id, round, window_ms, eligible, silent)
),
moved as (
    update convoke.tasks t set round = i.round, bids_close_at = clock_timestamp() + i.window_ms * interval '1 ms',
        due_at = clock_timestamp() + i.window_ms * interval '1 ms', updated_at = clock_timestamp(),
        version = t.version + 1
    from input i where t.id = i.task_id and t.state = 'open'
    returning t.id, t.version, t.org, t.epoch, t.bids_close_at, i.round, i.eligible, i.silent
),
logged as (
    insert into convoke.events (org, task_id, epoch, type, body)
    select org, id, epoch, 'announced', jsonb_build_object('round', round, 'eligible', eligible, 'silent', silent,
        'bids_close_at', bids_close_at)
    from moved
)
select id, version, bids_close_at from moved
