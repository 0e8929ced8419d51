with input as (
    select i.* from unnest($1::uuid[], $2::integer[], $3::text[], $4::bigint[], $5::uuid[], $6::bigint[], $7::jsonb[],
        $8::bigint[], $9::bigint[], $10::real[])
    as i(task_id, round, agent_id, incarnation, assignment_id, confirm_ms, details, cost, eta_ms, confidence)
    -- Of new tasks, those that this transaction has inserted: one that it should have inserted and that was there before
    -- takes no slot, nor does one that is not there.
    join convoke.tasks t on t.id = i.task_id and t.state = 'open'
        and (not $13::boolean or t.xmin = pg_current_xact_id()::xid)
),
slot as (
    update convoke.agents g set slots_used = g.slots_used + n.slots
    from (select agent_id, incarnation, count(*)::integer as slots from input group by agent_id, incarnation) n
    where g.id = n.agent_id and g.incarnation = n.incarnation and g.status = 'present'
        and g.drained_at is null
        and g.slots_used + n.slots <= g.slots
    returning g.id
),
moved as (
    update convoke.tasks t set state = 'awarded', state_reason = null, round = i.round,
        epoch = t.epoch + 1, agent_id = i.agent_id, bids_close_at = null,
        due_at = clock_timestamp() + i.confirm_ms * interval '1 ms', updated_at = clock_timestamp(),
        version = t.version + 1
    from input i join slot on slot.id = i.agent_id
    where t.id = i.task_id and t.state = 'open'
    returning t.id, t.version, t.org, t.kind, t.epoch, t.due_at, i.agent_id, i.incarnation, i.assignment_id, i.round, i.details, i.cost,
        i.eta_ms, i.confidence
),
made as (
    insert into convoke.assignments (id, task_id, epoch, agent_id, incarnation, node_id, state, confirm_by,
        cost_microdollars, eta_ms, confidence)
    select assignment_id, id, epoch, agent_id, incarnation, $11::uuid, 'awarded', due_at, cost, eta_ms, confidence
    from moved
),
marked as (
    update convoke.offer_rows o set state = 'awarded' from moved m
    where o.task_id = m.id and o.round = m.round and o.agent_id = m.agent_id and $12::boolean
),
logged as (
    insert into convoke.events (org, task_id, agent_id, epoch, type, body)
    select org, id, agent_id, epoch, 'awarded', jsonb_build_object('assignment_id', assignment_id, 'round', round,
        'confirm_by', due_at) || details
    from moved
)
select id, version, epoch, due_at, agent_id, incarnation, assignment_id from moved
