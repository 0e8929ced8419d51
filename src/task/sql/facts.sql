select t.id, t.org, t.kind, t.requires, t.state, t.round, t.rounds_empty, t.epoch, t.attempt, t.attempts_max,
    t.policy, t.tried, t.unable, t.outages, t.agent_id, t.state_reason, t.requester,
    -- Times may be infinite, and their differences are errors: all are limited to a century from now.
    case when t.run_at is null then 0
        else extract(epoch from least(greatest(t.run_at, now.first), now.last) - now.at) * 1000 end::bigint as run_in_ms,
    case when t.outage_since is null then 0
        else extract(epoch from now.at - least(greatest(t.outage_since, now.first), now.last)) * 1000 end::bigint as outage_ms,
    t.run_at, t.deadline_at, t.run_anyway, t.depends_on <> '{}' as depends,
    case when jsonb_typeof(t.answers) = 'array' then jsonb_array_length(t.answers) else 0 end as answers,
    coalesce(t.deadline_at <= now.at, false) as deadline_came,
    t.bids_close_at is not null as bidding, t.version,
    a.id as assignment_id, a.epoch as assignment_epoch, a.agent_id as assignee, a.incarnation,
    a.state as assignment_state,
    a.confirm_by <= now.at as confirm_late,
    a.start_by is not null as confirmed, a.start_by <= now.at as start_late,
    coalesce(a.nudged_at >= a.progress_at, false) as nudged,
    a.lease_until <= now.at as lease_late,
    a.attempt_deadline_at <= now.at as attempt_late,
    case when a.progress_at is not null
        then extract(epoch from now.at - least(greatest(a.progress_at, now.first), now.last)) * 1000 end::bigint as silent_ms,
    case when a.lease_until is not null or a.attempt_deadline_at is not null
        then extract(epoch from least(greatest(least(a.lease_until, a.attempt_deadline_at), now.first), now.last) - now.at)
            * 1000 end::bigint as lease_left_ms,
    n.progressed, n.under_way, n.tries
from convoke.tasks t
cross join (
    select at, at - interval '100 years' as first, at + interval '100 years' as last
    from (select clock_timestamp() as at) clock
) now
-- Lateral with a limit, so that the plan reads by key. A plain join may read all live assignments for each batch.
left join lateral (
    select * from convoke.assignments where task_id = t.id and ended_at is null limit 1
) a on true
-- The run that the assignment works on: whether a step has ended in this attempt, and the step that is under way.
left join lateral (
    select exists (select from convoke.steps s where s.task_id = t.id and s.run = r.run and s.assignment_id = a.id
            and s.kind <> 'note' and s.ended_at is not null) as progressed,
        (select s.seq from convoke.steps s where s.task_id = t.id and s.run = r.run and s.state = 'started'
            order by s.seq limit 1) as under_way,
        (select s.tries from convoke.steps s where s.task_id = t.id and s.run = r.run and s.state = 'started'
            order by s.seq limit 1) as tries
    from convoke.runs r
    where t.state = 'running' and r.task_id = t.id and r.agent_id = a.agent_id and r.ended_at is null
    order by r.run desc limit 1
) n on true
where t.id = any($1)
order by t.priority desc, t.id
