-- What the wakes of these triggers ($2), the schedules and the pending bursts of an org did last: of each trigger the
-- latest 1,000 wakes that are kept.
select 'wake' as kind, n.trigger, jsonb_build_object('tasks', f.tasks, 'failed', f.failed, 'last_at', f.last_at,
    'last_task', f.last_task, 'last_error', f.last_error) as shown
from unnest($2::text[]) as n(trigger)
cross join lateral (
    select count(*) filter (where r.task_id is not null) as tasks, count(*) filter (where r.error is not null) as failed,
        max(r.at) as last_at,
        (array_agg(r.task_id order by r.at desc) filter (where r.task_id is not null))[1] as last_task,
        (array_agg(left(r.error, 300) order by r.at desc) filter (where r.error is not null))[1] as last_error
    from (
        select w.task_id, w.error, w.at from convoke.wakes w where w.trigger = n.trigger order by w.lsn desc limit 1000
    ) r
) f
union all
select 'schedule', s.trigger, jsonb_build_object('last_at', s.fired_at, 'last_task', s.task_id)
from convoke.schedules s where s.org = $1
union all
select 'burst', b.trigger, b.shown from (
    select p.trigger, jsonb_build_object('key', left(p.key, 200), 'changes', p.changes, 'first_at', p.first_at,
        'due_at', p.due_at, 'task_id', p.task_id, 'error', left(p.error, 300)) as shown
    from convoke.bursts p where p.org = $1 and p.due_at is not null order by p.due_at limit 100
) b
