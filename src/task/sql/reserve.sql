-- Raises the reservation of an assignment to at least ($5 tokens, $6 microdollars), in all its budgets or in none.
with live as (
    select a.id, a.task_id, t.root_id, a.agent_id, greatest($5, coalesce(c.tokens, 0)) as tokens,
        greatest($6, case when $7 then a.cost_microdollars else 0 end, coalesce(c.microdollars, 0)) as microdollars,
        coalesce(c.tokens, 0) as tokens_had, coalesce(c.microdollars, 0) as microdollars_had
    from convoke.assignments a join convoke.tasks t on t.id = a.task_id
    left join convoke.charges c on c.assignment_id = a.id
    where a.id = $1 and a.task_id = $2 and a.epoch = $3 and a.agent_id = $4 and a.state = 'running'
        and coalesce(c.state, 'reserved') = 'reserved'
    for update of a
),
limits as (
    select b.task_id, b.tree from convoke.budgets b join live
        on (b.task_id = live.task_id and not b.tree) or (b.task_id = live.root_id and b.tree)
),
fit as (
    update convoke.budgets b set tokens_reserved = b.tokens_reserved + live.tokens - live.tokens_had,
        microdollars_reserved = b.microdollars_reserved + live.microdollars - live.microdollars_had
    from live join limits on true
    where b.task_id = limits.task_id and b.tree = limits.tree
        and b.tokens_reserved::numeric + b.tokens_spent + live.tokens - live.tokens_had
            <= coalesce(b.tokens_max, 9223372036854775807)
        and b.microdollars_reserved::numeric + b.microdollars_spent + live.microdollars - live.microdollars_had
            <= coalesce(b.microdollars_max, 9223372036854775807)
    returning b.task_id
),
charged as (
    insert into convoke.charges as c (assignment_id, task_id, root_id, agent_id, state, tokens, microdollars)
    select id, task_id, root_id, agent_id, 'reserved', tokens, microdollars from live
    on conflict (assignment_id) do update set tokens = excluded.tokens, microdollars = excluded.microdollars
)
select live.tokens, live.microdollars, (select count(*) from limits) as limits, (select count(*) from fit) as fit, (
    select least(9223372036854775807, coalesce(sum(c.microdollars), 0))::bigint from convoke.charges c
    where c.agent_id = live.agent_id and c.at > clock_timestamp() - interval '1 hour' and c.assignment_id <> live.id
) as hour
from live
