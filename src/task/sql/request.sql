with input as (
    select i.*, coalesce(i.known_class, convoke.task_class(i.org, i.requires)) as class,
        coalesce(i.run_at > clock_timestamp(), false) as later
    from (
        select at, id, org, kind, array(select jsonb_array_elements_text(requires)) as requires, input, requester,
            parent_id, idempotency_key, request_hash, priority, run_at, deadline_at, policy, attempts_max,
            more, traceparent, holder, known_class
        from unnest($1::uuid[], $2::text[], $3::text[], $4::jsonb[], $5::jsonb[], $6::text[], $7::uuid[],
            $8::text[], $9::bytea[], $10::smallint[], $11::timestamptz[], $12::timestamptz[], $13::jsonb[],
            $14::integer[], $15::jsonb[], $16::text[], $17::uuid[], $18::bigint[]) with ordinality
        as u(id, org, kind, requires, input, requester, parent_id, idempotency_key, request_hash, priority,
            run_at, deadline_at, policy, attempts_max, more, traceparent, holder, known_class, at)
    ) i
),
made as (
    insert into convoke.tasks (id, org, kind, requires, class, input, requester, parent_id, root_id,
        idempotency_key, request_hash, priority, state, run_at, due_at, deadline_at, policy, attempts_max,
        detached, run_anyway, depends_on, traceparent)
    select i.id, i.org, i.kind, i.requires, i.class, i.input, i.requester, i.parent_id,
        coalesce(parent.root_id, i.id), i.idempotency_key, i.request_hash, i.priority,
        case when i.more ? 'blocked' then 'blocked' when i.later then 'scheduled' else 'open' end, i.run_at,
        case when i.more ->> 'blocked' = 'due' then clock_timestamp()
            when i.later and not coalesce(i.more ? 'blocked', false) then i.run_at end,
        i.deadline_at, i.policy, i.attempts_max, coalesce(i.more ? 'detached', false),
        coalesce(i.more ? 'run_anyway', false),
        array(select d::uuid from jsonb_array_elements_text(i.more -> 'depends_on') as d),
        -- A part belongs to the trace of the whole, below the assignment that requests it.
        coalesce(i.traceparent, convoke.part_traceparent(parent.traceparent, coalesce(i.holder, parent.id)),
            (select convoke.own_traceparent(i.id) from convoke.task_defaults d
            where d.traced_percent > random() * 100))
    from input i left join convoke.tasks parent on parent.id = i.parent_id
    -- The first of two requests with one key wins.
    order by i.at
    on conflict do nothing
    returning id, org, kind, requires, requester, priority, state, created_at, class, parent_id, depends_on, root_id,
        input, policy, attempts_max
),
logged as (
    insert into convoke.events (org, task_id, epoch, type, body)
    select org, id, 0, 'requested', jsonb_build_object('kind', kind, 'requires', to_jsonb(requires),
        'requester', requester, 'priority', priority,
        'row', jsonb_build_object('state', state, 'input', input, 'policy', policy,
            'attempts_max', attempts_max, 'root_id', root_id))
        || case when parent_id is null then '{}' else jsonb_build_object('parent_id', parent_id) end
        || case when depends_on = '{}' then '{}' else jsonb_build_object('depends_on', to_jsonb(depends_on)) end
    from made
)
select id, state, created_at, class, root_id from made
