-- Drops a burst whose row makes no task.
with gone as (
    delete from convoke.bursts where trigger = $1 and key = $2 and due_at is not null
    returning org, changes
)
insert into convoke.events (org, task_id, epoch, type, body)
select org, null, null, 'wake_failed', jsonb_build_object('trigger', $1::text, 'error', $3::text, 'changes', changes)
from gone
