with input as (
    select i.*, array(select jsonb_array_elements_text(i.needs)) as requires
    from unnest($1::uuid[], $2::uuid[], $3::text[], $4::jsonb[], $5::jsonb[], $6::integer[])
        as i(id, of, kind, needs, policy, attempts_max)
),
made as (
    insert into convoke.tasks (id, org, kind, requires, class, input, requester, parent_id, root_id, priority, state,
        deadline_at, policy, attempts_max, followed, tried, traceparent)
    select i.id, t.org, i.kind, i.requires, convoke.task_class(t.org, i.requires),
        jsonb_build_object('task', jsonb_build_object('id', t.id, 'kind', t.kind, 'input', t.input), 'result', t.result),
        'verify:' || t.id, t.id, t.root_id, t.priority, 'open', t.deadline_at, i.policy, i.attempts_max, true,
        array[t.agent_id], convoke.part_traceparent(t.traceparent, t.id)
    from input i join convoke.tasks t on t.id = i.of
    returning id, org, kind, requires, requester, priority, parent_id, state, input, policy, attempts_max, root_id
)
insert into convoke.events (org, task_id, epoch, type, body)
select org, id, 0, 'requested', jsonb_build_object('kind', kind, 'requires', to_jsonb(requires), 'requester', requester,
    'priority', priority, 'parent_id', parent_id,
        'row', jsonb_build_object('state', state, 'input', input, 'policy', policy,
            'attempts_max', attempts_max, 'root_id', root_id))
from made
