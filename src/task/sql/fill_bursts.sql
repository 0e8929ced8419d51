-- The present requests of bursts: stored until they are due, or written into their unassigned task.
with input as (
    select * from unnest($1::text[], $2::text[], $3::uuid[], $4::bigint[], $5::jsonb[], $6::text[])
    as i(trigger, key, task_id, changes, request, error)
),
kept as (
    update convoke.bursts b set request = i.request, error = i.error
    from input i where b.trigger = i.trigger and b.key = i.key and i.task_id is null
),
moved as (
    update convoke.tasks t
    set input = i.request -> 'input', deadline_at = (i.request ->> 'deadline')::timestamptz,
        updated_at = clock_timestamp(), version = t.version + 1
    from input i
    where t.id = i.task_id and i.error is null and t.state = 'open' and t.epoch = 0
    returning t.id, t.org, t.input, i.changes
)
insert into convoke.events (org, task_id, epoch, type, body)
select org, id, 0, 'coalesced', jsonb_build_object('changes', changes, 'row', jsonb_build_object('input', input))
from moved
union all
select b.org, null, null, 'wake_failed',
    jsonb_build_object('trigger', i.trigger, 'error', i.error, 'changes', i.changes, 'task_id', i.task_id)
from input i join convoke.bursts b on b.trigger = i.trigger and b.key = i.key
where i.task_id is not null and i.error is not null
