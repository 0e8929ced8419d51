-- What the attempts of tasks used that were requested at $2 or later ($3: their lowest id), by hour, agent and kind: of
-- the newest 100,000 tasks. A charge has the latest figure; without one the outcome has it, where a hand may have
-- written anything.
with recent as (
    select r.id, r.org, r.kind from convoke.tasks r where r.id >= $3::uuid order by r.id desc limit 100000
),
used as (
    select date_trunc('hour', coalesce(a.ended_at, a.awarded_at)) as hour, a.agent_id, t.kind,
        coalesce(c.tokens, case when jsonb_typeof(a.outcome -> 'tokens') = 'number'
            then least(greatest((a.outcome ->> 'tokens')::numeric, 0), 9e15) end, 0) as tokens,
        coalesce(c.microdollars, case when jsonb_typeof(a.outcome -> 'microdollars') = 'number'
            then least(greatest((a.outcome ->> 'microdollars')::numeric, 0), 9e15) end, 0) as microdollars,
        coalesce(c.state = 'presumed', false) as presumed,
        case when c.state = 'reserved' then c.microdollars else 0 end as reserved
    from recent t join convoke.assignments a on a.task_id = t.id
    left join convoke.charges c on c.assignment_id = a.id
    where t.org = $1 and coalesce(a.ended_at, a.awarded_at) >= $2::timestamptz
),
grouped as (
    select u.hour, u.agent_id, u.kind, count(*) as attempts, sum(u.tokens)::float8 as tokens,
        sum(u.microdollars)::float8 as microdollars, bool_or(u.presumed) as presumed, sum(u.reserved)::float8 as reserved
    from used u group by 1, 2, 3 order by 1 desc, 6 desc limit 10001
)
select jsonb_build_object('hour', g.hour, 'agent_id', g.agent_id, 'kind', g.kind, 'attempts', g.attempts,
    'tokens', g.tokens, 'microdollars', g.microdollars, 'presumed', g.presumed, 'reserved', g.reserved) as row,
    (select count(*) from recent) >= 100000 as partial
from grouped g order by g.hour desc, g.microdollars desc
