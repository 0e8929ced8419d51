with input as (
    select * from unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::jsonb[], $7::jsonb[],
        $8::bigint[], $9::boolean[], $10::boolean[], $11::bigint[], $12::bigint[], $13::text[], $14::jsonb[],
        $15::jsonb[], $16::boolean[], $17::jsonb[])
    as i(task_id, assignment_id, assignment_state, task_state, reason, result, error, due_ms, standby, tried,
        tokens, microdollars, event, body, checkpoint, holds_slot, more)
),
ended as (
    update convoke.assignments a set state = i.assignment_state,
        ended_at = case when i.assignment_state <> 'waiting' then clock_timestamp() end,
        waiting_since = case when i.assignment_state = 'waiting' and i.holds_slot then clock_timestamp()
            else a.waiting_since end,
        lease_until = case when i.assignment_state = 'waiting' then null else a.lease_until end,
        checkpoint = coalesce(i.checkpoint, a.checkpoint),
        outcome = jsonb_build_object('tokens', i.tokens, 'microdollars', i.microdollars, 'body', i.body)
    from input i
    where a.id = i.assignment_id and a.state in ('awarded', 'running', 'waiting')
    returning i.*, a.agent_id as assignee, a.incarnation, a.state as ended_as, a.eta_ms,
        least(9, floor(a.confidence * 10))::integer as tenth,
        extract(epoch from coalesce(a.waiting_since, a.ended_at) - a.started_at) * 1000 as took_ms
),
-- A union and not a join with the assignments: the planner expects one row of each and would use a nested loop over
-- all pairs.
steps as (
    select * from ended
    union all
    select i.*, null, null, null, null, null, null from input i where i.assignment_id is null
),
moved as (
    update convoke.tasks t set state = i.task_state, state_reason = i.reason,
        result = case when i.task_state in ('completed', 'verifying') then coalesce(i.result, t.result) end,
        -- The earlier error says more than the timeout, so it is kept as `last`.
        error = case when jsonb_typeof(t.error) = 'object' and i.event in ('deadline', 'unallocatable', 'unanswered')
            then i.error || jsonb_build_object('last', t.error - 'last')
            else coalesce(i.error, t.error) end,
        question = case when i.task_state = 'waiting'
            then i.more -> 'question' || jsonb_build_object('asked_at', clock_timestamp()) end,
        answers = case when i.more ? 'answer' then coalesce(t.answers, '[]') || jsonb_build_array(
            jsonb_build_object('question', t.question -> 'question', 'at', clock_timestamp()) || (i.more -> 'answer'))
            else t.answers end,
        prefer = i.more ->> 'prefer', rejected = i.more ->> 'rejected',
        verifier_id = coalesce((i.more ->> 'verifier_id')::uuid, t.verifier_id),
        has_children = t.has_children or coalesce(i.more ? 'verifier_id', false),
        attempt = t.attempt - coalesce(i.more ? 'attempt_goes_on', false)::integer,
        -- Jitter of a fifth, so that many tasks do not retry at once.
        due_at = clock_timestamp() + i.due_ms * interval '1 ms'
            * case when i.more ? 'jitter' then 0.8 + 0.4 * random() else 1 end,
        bids_close_at = case when i.standby then clock_timestamp() end,
        agent_id = case when i.task_state = 'open' then null else t.agent_id end,
        tried = case when i.tried and i.assignee is not null and not i.assignee = any(t.tried)
            then t.tried || i.assignee else t.tried end,
        unable = case when i.more ? 'unable' and not i.assignee = any(t.unable)
            then t.unable || i.assignee else t.unable end,
        -- An outage lasts until an attempt ends in another way; an award without a start is no attempt.
        outages = case when i.more ? 'outage' then t.outages + 1
            when i.assignment_id is null or i.assignment_state in ('refused', 'confirm_timeout', 'start_timeout')
            then t.outages else 0 end,
        outage_since = case when i.more ? 'outage' then coalesce(t.outage_since, clock_timestamp())
            when i.assignment_id is null or i.assignment_state in ('refused', 'confirm_timeout', 'start_timeout')
            then t.outage_since end,
        cancel_requested_at = case when i.task_state = 'canceling' then clock_timestamp()
            else t.cancel_requested_at end,
        updated_at = clock_timestamp(), version = t.version + 1
    from steps i
    where t.id = i.task_id and t.state not in ('completed', 'failed', 'canceled')
    returning t.id, t.version, t.org, t.kind, t.state, t.state_reason, t.requester, t.round, t.epoch, t.class, t.agent_id, i.event,
        -- The new columns of the row, from which the replay of the event log rebuilds it.
        i.body || jsonb_build_object('row', jsonb_build_object('reason', t.state_reason, 'agent_id', t.agent_id,
            'attempt', t.attempt)
            || case when i.result is null then '{}' else jsonb_build_object('result', t.result) end
            || case when i.error is null then '{}' else jsonb_build_object('error', t.error) end) as body,
        i.assignee, i.ended_as, i.holds_slot, i.eta_ms, i.tenth, i.took_ms, i.microdollars,
        (t.followed and t.state in ('completed', 'failed', 'canceled'))
            or (t.has_children and t.state in ('canceling', 'failed', 'canceled')) as leads_on
),
freed as (
    update convoke.agents g set slots_used = greatest(0, g.slots_used - n.slots)
    from (select assignee, incarnation, count(*)::integer as slots from ended
        where holds_slot group by assignee, incarnation) n
    where g.id = n.assignee and g.incarnation = n.incarnation
),
counted as (
    insert into convoke.statistics as s (agent_id, kind, completed, failed, refused, late, ended_at,
        succeeded_at, weight, latency_ms_sum, cost_microdollars_sum)
    select m.assignee, m.kind, count(*) filter (where m.ended_as = 'finished'),
        count(*) filter (where m.ended_as in ('failed', 'rejected', 'lease_lost', 'stalled')),
        count(*) filter (where m.ended_as in ('refused', 'confirm_timeout', 'start_timeout')),
        count(*) filter (where m.ended_as = 'finished' and m.took_ms > 2 * m.eta_ms::numeric + 1000),
        -- The tenths of confidence, written out: a function in SQL would be planned anew by each execution.
        array[count(*) filter (where m.tenth = 0), count(*) filter (where m.tenth = 1),
            count(*) filter (where m.tenth = 2), count(*) filter (where m.tenth = 3),
            count(*) filter (where m.tenth = 4), count(*) filter (where m.tenth = 5),
            count(*) filter (where m.tenth = 6), count(*) filter (where m.tenth = 7),
            count(*) filter (where m.tenth = 8), count(*) filter (where m.tenth = 9)],
        array[count(*) filter (where m.tenth = 0 and m.ended_as = 'finished'),
            count(*) filter (where m.tenth = 1 and m.ended_as = 'finished'),
            count(*) filter (where m.tenth = 2 and m.ended_as = 'finished'),
            count(*) filter (where m.tenth = 3 and m.ended_as = 'finished'),
            count(*) filter (where m.tenth = 4 and m.ended_as = 'finished'),
            count(*) filter (where m.tenth = 5 and m.ended_as = 'finished'),
            count(*) filter (where m.tenth = 6 and m.ended_as = 'finished'),
            count(*) filter (where m.tenth = 7 and m.ended_as = 'finished'),
            count(*) filter (where m.tenth = 8 and m.ended_as = 'finished'),
            count(*) filter (where m.tenth = 9 and m.ended_as = 'finished')],
        count(*) filter (where m.ended_as = 'finished'),
        coalesce(sum(m.took_ms) filter (where m.ended_as = 'finished'), 0),
        coalesce(sum(m.microdollars) filter (where m.ended_as = 'finished'), 0)
    from (
        -- Only an attempt that was made says how right its confidence was.
        select assignee, kind, ended_as, took_ms, eta_ms, microdollars,
            case when ended_as in ('finished', 'failed', 'rejected', 'lease_lost', 'stalled') then tenth end as tenth
        from moved
    ) m
    where m.ended_as not in ('waiting', 'released')
    group by m.assignee, m.kind
    on conflict (agent_id, kind) do update set
        completed = s.completed + excluded.completed,
        failed = s.failed + excluded.failed,
        refused = s.refused + excluded.refused,
        late = s.late + excluded.late,
        ended_at = array[coalesce(s.ended_at[1], 0) + excluded.ended_at[1], coalesce(s.ended_at[2], 0) + excluded.ended_at[2],
            coalesce(s.ended_at[3], 0) + excluded.ended_at[3], coalesce(s.ended_at[4], 0) + excluded.ended_at[4],
            coalesce(s.ended_at[5], 0) + excluded.ended_at[5], coalesce(s.ended_at[6], 0) + excluded.ended_at[6],
            coalesce(s.ended_at[7], 0) + excluded.ended_at[7], coalesce(s.ended_at[8], 0) + excluded.ended_at[8],
            coalesce(s.ended_at[9], 0) + excluded.ended_at[9], coalesce(s.ended_at[10], 0) + excluded.ended_at[10]],
        succeeded_at = array[coalesce(s.succeeded_at[1], 0) + excluded.succeeded_at[1], coalesce(s.succeeded_at[2], 0) + excluded.succeeded_at[2],
            coalesce(s.succeeded_at[3], 0) + excluded.succeeded_at[3], coalesce(s.succeeded_at[4], 0) + excluded.succeeded_at[4],
            coalesce(s.succeeded_at[5], 0) + excluded.succeeded_at[5], coalesce(s.succeeded_at[6], 0) + excluded.succeeded_at[6],
            coalesce(s.succeeded_at[7], 0) + excluded.succeeded_at[7], coalesce(s.succeeded_at[8], 0) + excluded.succeeded_at[8],
            coalesce(s.succeeded_at[9], 0) + excluded.succeeded_at[9], coalesce(s.succeeded_at[10], 0) + excluded.succeeded_at[10]],
        weight = s.weight * power(0.98, excluded.weight) + excluded.weight,
        latency_ms_sum = s.latency_ms_sum * power(0.98, excluded.weight) + excluded.latency_ms_sum,
        cost_microdollars_sum = s.cost_microdollars_sum * power(0.98, excluded.weight)
            + excluded.cost_microdollars_sum
),
answered as (
    update convoke.offer_rows o
    set state = case when o.state = 'awarded' then 'refused' else 'lost' end
    from moved m
    where o.task_id = m.id and (
        (o.state = 'open' and m.state in ('completed', 'failed', 'canceled'))
        or (o.state = 'awarded' and o.round = m.round and o.agent_id = m.assignee
            and m.ended_as in ('refused', 'confirm_timeout', 'start_timeout', 'lease_lost', 'canceled')))
),
-- A canceled task thinks no further: requeued, it begins a new run.
canceled as (
    update convoke.runs r set ended_as = 'canceled', ended_at = clock_timestamp()
    from moved m where m.state = 'canceled' and r.task_id = m.id and r.ended_at is null
),
logged as (
    insert into convoke.events (org, task_id, agent_id, epoch, type, body)
    select org, id, coalesce(assignee, agent_id), epoch, event, body from moved
)
select id, version, org, kind, state, state_reason, requester, epoch, case when holds_slot then assignee end as assignee, leads_on,
    coalesce(agent_id, assignee) as agent_id
from moved
