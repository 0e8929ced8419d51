with input as (
    select n, (lpad(to_hex(1700000000000 + n), 12, '0') || '70008000' || lpad(to_hex(n), 12, '0'))::uuid as id,
        gen_random_uuid() as assignment_id, 'bidder-' || n % $3::bigint as winner
    from generate_series($1::bigint, $2::bigint) n
),
made as (
    insert into convoke.tasks (id, org, kind, requires, class, input, requester, root_id, state, round, epoch, attempt,
        agent_id, result)
    select id, 'bench', 'bench.task', '{work}', convoke.task_class('bench', '{work}'),
        '{"text": "a small input of a usual size"}', 'bench', id, 'completed', 1, 1, 1, winner, '{"ok": true}'
    from input
),
offered as (
    insert into convoke.offer_rows (task_id, round, agent_id, incarnation, state, cost_microdollars, eta_ms, confidence,
        valid_until, score)
    select id, 1, 'bidder-' || bidder, 1, case when bidder = n % $3::bigint then 'confirmed' else 'lost' end, 100 + bidder, 100, 0.5,
        clock_timestamp(), jsonb_build_object('total', 500000, 'cost', 400000, 'speed', 500000, 'confidence', 500000,
            'load', 900000, 'reputation', 700000, 'waited', bidder)
    from input cross join generate_series(0, $3::bigint - 1) bidder
),
assigned as (
    insert into convoke.assignments (id, task_id, epoch, agent_id, incarnation, state, confirm_by, started_at,
        lease_until, progress_at, attempt_deadline_at, outcome, ended_at)
    select assignment_id, id, 1, winner, 1, 'finished', clock_timestamp(), clock_timestamp(), clock_timestamp(),
        clock_timestamp(), clock_timestamp(), '{"tokens": 0, "microdollars": 0}', clock_timestamp()
    from input
)
insert into convoke.events (org, task_id, agent_id, epoch, type, body)
select 'bench', id, case when step > 0 then winner end, least(step, 1), type, body from input
cross join lateral (values
    (0, 'requested', jsonb_build_object('kind', 'bench.task', 'requester', 'bench', 'priority', 0,
        'row', '{"input": {"text": "a small input of a usual size"}, "policy": {}, "state": "open"}'::jsonb)),
    (1, 'awarded', jsonb_build_object('assignment_id', assignment_id, 'round', 1, 'award', 'weighted')),
    (2, 'started', jsonb_build_object('assignment_id', assignment_id, 'attempt', 1)),
    (3, 'finished', jsonb_build_object('state', 'completed', 'assignment_id', assignment_id,
        'row', '{"result": {"ok": true}, "attempt": 1}'::jsonb))
) as steps(step, type, body)
order by n, step
