-- Inserts the tasks of the due bursts: of all, or of one ($1 its trigger, $2 its key).
with due as materialized (
    select b.*, convoke.uuid_v7() as made_id,
        array(select jsonb_array_elements_text(b.request -> 'requires')) as requires
    from convoke.bursts b where b.due_at <= (select clock_timestamp())
        and ($1::text is null or (b.trigger = $1 and b.key = $2))
    order by b.due_at limit 200 for update skip locked
),
kept as (
    update convoke.bursts b set due_at = null, request = null, task_id = d.made_id
    from due d where b.trigger = d.trigger and b.key = d.key and d.merges and d.error is null
),
gone as (
    delete from convoke.bursts b
    using due d where b.trigger = d.trigger and b.key = d.key and not (d.merges and d.error is null)
),
made as (
    insert into convoke.tasks (id, org, kind, requires, class, input, requester, root_id, priority, state,
        deadline_at, policy, attempts_max, traceparent)
    select made_id, org, request ->> 'kind', requires, convoke.task_class(org, requires), request -> 'input',
        'wake:' || trigger, made_id, (request ->> 'priority')::smallint, 'open',
        (request ->> 'deadline')::timestamptz, request -> 'policy', (request ->> 'attempts_max')::integer,
        (select convoke.own_traceparent(made_id) from convoke.task_defaults d
            where d.traced_percent > random() * 100)
    from due where error is null
    returning id, org, kind, requires, requester, priority, class, policy, state, state_reason, epoch, agent_id, input,
        attempts_max, root_id, version
),
logged as (
    insert into convoke.events (org, task_id, epoch, type, body)
    select m.org, m.id, 0, 'requested', jsonb_build_object('kind', m.kind, 'requires', to_jsonb(m.requires),
        'requester', m.requester, 'priority', m.priority, 'changes', d.changes,
        'row', jsonb_build_object('state', m.state, 'input', m.input, 'policy', m.policy,
            'attempts_max', m.attempts_max, 'root_id', m.root_id))
    from made m join due d on d.made_id = m.id
    union all
    select org, null, null, 'wake_failed',
        jsonb_build_object('trigger', trigger, 'error', error, 'changes', changes)
    from due where error is not null
)
select m.id, m.org, m.kind, m.requires, m.requester, m.class, m.policy, m.state, m.state_reason, m.epoch, m.agent_id, m.version
from due d left join made m on m.id = d.made_id
