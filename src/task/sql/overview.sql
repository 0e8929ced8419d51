-- What happens in an org now, in bounded reads: no part reads more than 100,000 unfinished tasks, the newest 20,000
-- tasks, or the newest 2,000 events.
with live as (
    select k.state, k.created_at, k.question, k.kind, k.policy, k.bids_close_at from convoke.tasks k where k.org = $1 and k.id = any(array(
        select d.id from convoke.tasks d where d.due_at is not null
        union select o.id from convoke.tasks o where o.state = 'open' and o.due_at is null
        union select a.task_id from convoke.assignments a where a.ended_at is null
        union select b.id from convoke.tasks b where b.state = 'blocked' and b.depends_on @> '{}'
        limit 100000
    ))
),
-- The id of a task begins with the milliseconds of its request, so the tasks of an hour are a range of the key; `now()`,
-- since an index is not searched for a value of a volatile function.
recent as (
    select r.org, r.state from convoke.tasks r
    where r.id >= rpad(lpad(to_hex((extract(epoch from now() - interval '1 hour') * 1000)::bigint), 12, '0'),
        32, '0')::uuid
    order by r.id desc limit 20000
),
awards as (
    select e.seq, e.at, e.task_id, e.agent_id, e.epoch, e.body from (
        select n.* from convoke.events n order by n.seq desc limit 2000
    ) e
    where e.org = $1 and e.type = 'awarded' order by e.seq desc limit 8
)
select jsonb_build_object(
    'at', clock_timestamp(),
    'org', $1::text,
    'states', coalesce((select jsonb_object_agg(s.state, s.n) from (
        select l.state, count(*) as n from live l group by l.state) s), '{}'),
    'needs', coalesce((select jsonb_object_agg(s.needs, s.n) from (
        -- As in `lines.sql`: $2 has the award policies of kinds, $3 the one of all others.
        select case when l.state = 'waiting' then coalesce(l.question ->> 'for', 'input') else 'choice' end as needs,
            count(*) as n
        from live l where l.state = 'waiting' or (l.state = 'open' and l.bids_close_at is not null
            and coalesce(l.policy ->> 'award', $2::jsonb ->> l.kind, $3::text) = 'requester')
        group by 1) s), '{}'),
    'oldest_open_at', (select min(l.created_at) from live l where l.state = 'open'),
    'ended', (select jsonb_build_object('window', '1h',
        'completed', count(*) filter (where r.org = $1 and r.state = 'completed'),
        'failed', count(*) filter (where r.org = $1 and r.state = 'failed'),
        'canceled', count(*) filter (where r.org = $1 and r.state = 'canceled'),
        'partial', count(*) >= 20000) from recent r),
    'agents', (select jsonb_build_object(
        'present', count(*) filter (where g.status = 'present'), 'known', count(*),
        'busy', count(*) filter (where g.status = 'present' and g.slots_used > 0),
        'slots', coalesce(sum(g.slots) filter (where g.status = 'present'), 0),
        'slots_used', coalesce(sum(g.slots_used) filter (where g.status = 'present'), 0))
        from convoke.agents g where g.org = $1),
    'awards', coalesce((select jsonb_agg(jsonb_build_object(
        'task_id', w.task_id, 'version', t.version, 'kind', t.kind, 'state', t.state, 'input_preview', left(t.input::text, 120),
        'at', w.at, 'agent_id', w.agent_id, 'epoch', w.epoch, 'round', w.body -> 'round', 'award', w.body -> 'award',
        'weights', w.body -> 'weights',
        'offers', (select coalesce(jsonb_agg(o.offer order by o.place), '[]') from jsonb_array_elements(
            case when jsonb_typeof(w.body -> 'offers') = 'array' then w.body -> 'offers' else '[]' end)
            with ordinality as o(offer, place) where o.place <= 4),
        'offers_in_all', case when jsonb_typeof(w.body -> 'offers') = 'array'
            then jsonb_array_length(w.body -> 'offers') else 0 end) order by w.seq desc)
        from awards w left join convoke.tasks t on t.id = w.task_id), '[]')
) as overview
