with input as (
    select * from unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::bigint[], $5::bigint[])
    as i(task_id, assignment_id, lease_ms, attempt_ms, due_ms)
),
started as (
    update convoke.assignments a set state = 'running', started_at = now.at, progress_at = now.at,
        lease_ms = i.lease_ms, lease_until = now.at + i.lease_ms * interval '1 ms',
        attempt_deadline_at = now.at + i.attempt_ms * interval '1 ms'
    from input i join convoke.tasks t on t.id = i.task_id and t.state = 'awarded'
        cross join (select clock_timestamp() as at) now
    where a.id = i.assignment_id and a.task_id = t.id and a.epoch = t.epoch and a.state = 'awarded'
        -- Where nothing was read before ($6), whether it is still in time is decided here.
        and (not $6::boolean or coalesce(a.start_by, a.confirm_by) > now.at)
    returning a.task_id, a.id, a.agent_id, a.epoch, now.at + i.due_ms * interval '1 ms' as due_at
),
moved as (
    update convoke.tasks t set state = 'running', attempt = t.attempt + 1, rounds_empty = 0, unattended_since = null,
        due_at = s.due_at,
        updated_at = clock_timestamp(), version = t.version + 1
    from started s where t.id = s.task_id
    returning t.id, t.version, t.org, t.kind, t.round, t.epoch, t.attempt, t.input, t.deadline_at,
        t.answers, t.rejected, t.priority, t.root_id, t.traceparent, s.agent_id, s.id as assignment_id
),
-- A task with a budget has a charge from its start.
charged as (
    insert into convoke.charges (assignment_id, task_id, root_id, agent_id, state, tokens, microdollars)
    select m.assignment_id, m.id, m.root_id, m.agent_id, 'reserved', 0, 0 from moved m
    where exists (select from convoke.budgets b where (b.task_id = m.id and not b.tree) or (b.task_id = m.root_id and b.tree))
    returning task_id
),
confirmed as (
    update convoke.offer_rows o set state = 'confirmed' from moved m
    where o.task_id = m.id and o.round = m.round and o.agent_id = m.agent_id
),
logged as (
    insert into convoke.events (org, task_id, agent_id, epoch, type, body)
    select org, id, agent_id, epoch, 'started', jsonb_build_object('assignment_id', assignment_id,
        'attempt', attempt)
    from moved
)
select m.id, m.version, m.input, m.attempt, m.deadline_at, m.answers, m.rejected, m.priority, m.traceparent,
    exists (select from charged where task_id = m.id) as budgeted, (
    select a.checkpoint from convoke.assignments a
    where a.task_id = m.id and a.checkpoint is not null and m.epoch > 1 order by a.epoch desc limit 1
) as checkpoint
from moved m
