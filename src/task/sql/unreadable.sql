-- Ends tasks whose rows cannot be read. Computes with no column that may hold a bad value.
with input as (
    select * from unnest($1::uuid[], $2::text[]) as i(task_id, message)
),
live as (
    select a.id, a.task_id, a.epoch, a.agent_id, a.incarnation, a.state in ('awarded', 'running') as held_slot
    from convoke.assignments a
    where a.task_id = any($1) and a.ended_at is null
),
moved as (
    update convoke.tasks t set state = 'failed', state_reason = 'unreadable', result = null,
        error = jsonb_build_object('message', i.message), due_at = null, bids_close_at = null, question = null,
        prefer = null, rejected = null, updated_at = clock_timestamp(),
        version = case when t.version < 9007199254740992 then t.version + 1 else t.version end
    from input i
    where t.id = i.task_id and t.state in ('blocked', 'scheduled', 'open', 'awarded', 'running', 'verifying',
        'waiting', 'canceling')
    returning t.id, t.version, t.org, t.kind, t.state, t.state_reason, t.requester, t.epoch, t.agent_id, t.attempt, t.error,
        i.message, t.followed or t.has_children as leads_on
),
ended as (
    update convoke.assignments a set state = 'failed', ended_at = clock_timestamp(),
        outcome = jsonb_build_object('body', jsonb_build_object('message', m.message))
    from live l join moved m on m.id = l.task_id
    where a.id = l.id
),
freed as (
    update convoke.agents g set slots_used = greatest(0, g.slots_used - n.slots)
    from (select l.agent_id, l.incarnation, count(*)::integer as slots from live l join moved m on m.id = l.task_id
        where l.held_slot group by l.agent_id, l.incarnation) n
    where g.id = n.agent_id and g.incarnation = n.incarnation
),
lost as (
    update convoke.offer_rows o set state = 'lost' from moved m where o.task_id = m.id and o.state = 'open'
),
logged as (
    insert into convoke.events (org, task_id, agent_id, epoch, type, body)
    select m.org, m.id, coalesce(l.agent_id, m.agent_id), m.epoch, 'unreadable', jsonb_strip_nulls(
        jsonb_build_object('state', m.state, 'reason', m.state_reason, 'message', m.message,
            'assignment', case when l.id is not null then 'failed' end, 'assignment_id', l.id))
        || jsonb_build_object('row', jsonb_build_object('reason', m.state_reason, 'agent_id', m.agent_id,
            'attempt', m.attempt, 'error', m.error))
    from moved m left join live l on l.task_id = m.id
)
select m.id, m.version, m.org, m.kind, m.state, m.state_reason, m.requester, m.epoch, m.agent_id, m.leads_on,
    l.agent_id as assignee, l.id as assignment_id, l.epoch as assignment_epoch, coalesce(l.held_slot, false) as held_slot
from moved m left join live l on l.task_id = m.id
