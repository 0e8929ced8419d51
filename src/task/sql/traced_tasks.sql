-- The tasks of the events after $1 that have ended and whose trace is recorded (the last bit of its flags), and those of
-- the events of the 5 seconds before: numbers do not commit in order, so a lower number may have come meanwhile. At most
-- $2 later and 5,000 earlier events are looked at; `reached` is the last number, and `waiting` the events after it. No event
-- of the types below ends a task, and most events have one of them.
with later as (
    select e.seq, e.task_id, e.type from convoke.events e where e.seq > $1 order by e.seq limit $2
),
earlier as (
    select e.task_id, e.type, e.at from convoke.events e where e.seq <= $1 order by e.seq desc limit 5000
),
looked as (
    select l.task_id from later l
    where l.type not in ('requested', 'announced', 'awarded', 'confirmed', 'started', 'progress')
    union
    select a.task_id from earlier a
    where a.at >= clock_timestamp() - interval '5 s'
        and a.type not in ('requested', 'announced', 'awarded', 'confirmed', 'started', 'progress')
)
select coalesce((select max(seq) from later), $1) as reached,
    greatest((select max(seq) from convoke.events) - coalesce((select max(seq) from later), $1), 0) as waiting, t.id, t.org, t.kind, t.state, t.state_reason, t.traceparent,
    t.created_at, t.updated_at, case when t.requester ~ '^(wake|schedule):' then t.requester end as trigger
from (select) as one left join (
    select t.* from convoke.tasks t join looked on looked.task_id = t.id
    where t.state in ('completed', 'failed', 'canceled') and t.traceparent ~ '[13579bdf]$'
) t on true
