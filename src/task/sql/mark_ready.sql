with before as (
    select id, state from convoke.tasks where id = any($1) and state in ('open', 'scheduled')
),
moved as (
    update convoke.tasks t set due_at = null, bids_close_at = null, state = 'open', updated_at = clock_timestamp(),
        version = t.version + 1
    from before where t.id = before.id
    returning t.id, t.org, t.epoch, before.state as was
)
insert into convoke.events (org, task_id, epoch, type, body)
select org, id, epoch, 'scheduled', '{"state": "open"}' from moved where was = 'scheduled'
