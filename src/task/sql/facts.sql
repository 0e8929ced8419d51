select t.id, t.org, t.kind, t.requires, t.state, t.round, t.rounds_empty, t.epoch, t.attempt, t.attempts_max,
    t.policy, t.tried, t.agent_id, t.state_reason, t.requester,
    coalesce(extract(epoch from t.run_at - now.at) * 1000, 0)::bigint as run_in_ms, t.run_anyway,
    t.depends_on <> '{}' as depends, coalesce(jsonb_array_length(t.answers), 0) as answers,
    coalesce(t.deadline_at <= now.at, false) as deadline_came,
    t.bids_close_at is not null as bidding,
    a.id as assignment_id, a.epoch as assignment_epoch, a.agent_id as assignee, a.incarnation,
    a.state as assignment_state,
    a.confirm_by <= now.at as confirm_late,
    a.start_by is not null as confirmed, a.start_by <= now.at as start_late,
    coalesce(a.nudged_at >= a.progress_at, false) as nudged,
    a.lease_until <= now.at as lease_late,
    a.attempt_deadline_at <= now.at as attempt_late,
    (extract(epoch from now.at - a.progress_at) * 1000)::bigint as silent_ms,
    (extract(epoch from least(a.lease_until, a.attempt_deadline_at) - now.at) * 1000)::bigint as lease_left_ms
from convoke.tasks t
cross join (select clock_timestamp() as at) now
-- One by one: joined at once, all that are live would be read for each batch.
left join lateral (
    select * from convoke.assignments where task_id = t.id and ended_at is null limit 1
) a on true
where t.id = any($1)
order by t.priority desc, t.id
