with input as (
    select i.*, array(select jsonb_array_elements_text(i.needs)) as requires
    from unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::integer[], $6::uuid[], $7::text[],
        $8::jsonb[], $9::jsonb[], $10::smallint[], $11::timestamptz[], $12::jsonb[], $13::integer[], $14::text[], $15::text[], $16::bigint[])
    as i(trigger, agent_id, org, lsn, index, task_id, kind, needs, input, priority, deadline_at, policy,
        attempts_max, error, traceparent, class)
),
fresh as (
    insert into convoke.wakes (trigger, agent_id, lsn, index, task_id, error)
    select trigger, agent_id, '0/0'::pg_lsn + lsn::numeric, index, case when error is null then task_id end, error from input
    on conflict do nothing
    returning trigger, lsn, index
),
new as (
    select i.* from input i join fresh f on f.trigger = i.trigger and f.lsn = '0/0'::pg_lsn + i.lsn::numeric
        and f.index = i.index
),
made as (
    insert into convoke.tasks (id, org, kind, requires, class, input, requester, root_id, priority, state,
        deadline_at, policy, attempts_max, traceparent)
    select task_id, org, kind, requires, coalesce(class, convoke.task_class(org, requires)), input, 'wake:' || trigger, task_id,
        priority, 'open', deadline_at, policy, attempts_max, coalesce(traceparent,
            (select convoke.own_traceparent(task_id) from convoke.task_defaults d
            where d.traced_percent > random() * 100))
    from new where error is null
    returning id, org, kind, requires, requester, priority, class, policy, state, state_reason, epoch, agent_id, input,
        attempts_max, root_id, version
),
logged as (
    insert into convoke.events (org, task_id, epoch, type, body)
    select org, id, 0, 'requested', jsonb_build_object('kind', kind, 'requires', to_jsonb(requires),
        'requester', requester, 'priority', priority,
        'row', jsonb_build_object('state', state, 'input', input, 'policy', policy,
            'attempts_max', attempts_max, 'root_id', root_id))
    from made
    union all
    select org, null, null, 'wake_failed', jsonb_build_object('trigger', trigger, 'error', error,
        'lsn', ('0/0'::pg_lsn + lsn::numeric)::text, 'index', index)
    from new where error is not null
)
select id, org, kind, requires, requester, class, policy, state, state_reason, epoch, agent_id, version from made
