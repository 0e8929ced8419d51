-- What was used in the hour of $2 and later, by hour, agent and kind, and what is reserved now.
with used as (
    select s.hour, s.agent_id, s.kind, s.attempts, s.presumed, s.tokens, s.microdollars, 0::numeric as reserved
    from convoke.spend s where s.org = $1 and s.hour >= date_trunc('hour', $2::timestamptz, 'UTC')
    union all
    select date_trunc('hour', clock_timestamp(), 'UTC'), c.agent_id, t.kind, 0, 0, 0, 0,
        greatest(0, c.microdollars - coalesce((select sum(q.microdollars) from convoke.model_questions q
            where q.assignment_id = c.assignment_id and q.state <> 'sent'), 0))
    from convoke.charges c join convoke.tasks t on t.id = c.task_id where c.state = 'reserved' and t.org = $1
),
grouped as (
    select u.hour, u.agent_id, u.kind, sum(u.attempts) as attempts, sum(u.tokens) as tokens,
        sum(u.microdollars) as microdollars, sum(u.presumed) > 0 as presumed, sum(u.reserved) as reserved
    from used u group by 1, 2, 3
    having sum(u.attempts) + sum(u.tokens) + sum(u.microdollars) + sum(u.reserved) > 0
    order by 1 desc, 6 desc limit 10001
)
select jsonb_build_object('hour', g.hour, 'agent_id', g.agent_id, 'kind', g.kind, 'attempts', g.attempts,
    'tokens', g.tokens, 'microdollars', g.microdollars, 'presumed', g.presumed, 'reserved', g.reserved) as row
from grouped g order by g.hour desc, g.microdollars desc
