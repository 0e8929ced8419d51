-- Replaces presumed use by reported use, where it was counted. Use above it and the limit is counted as over. The
-- questions of an assignment that asked models are corrected one by one instead.
with input as (
    select * from unnest($1::uuid[], $2::boolean[], $3::bigint[], $4::bigint[])
    as i(assignment_id, known, tokens, microdollars)
),
held as (
    select c.assignment_id, c.state, c.tokens, c.microdollars, c.settled_at
    from convoke.charges c join input i on i.assignment_id = c.assignment_id for update of c
),
was as (
    select i.assignment_id, a.task_id, t.root_id, t.org, t.kind, a.agent_id, h.assignment_id is not null as has_charge,
        coalesce(h.settled_at, clock_timestamp()) as at,
        coalesce(h.tokens, 0) as tokens_had, coalesce(h.microdollars, 0) as microdollars_had, i.tokens, i.microdollars
    from input i join convoke.assignments a on a.id = i.assignment_id join convoke.tasks t on t.id = a.task_id
    left join held h on h.assignment_id = i.assignment_id
    where i.known and not exists (select from convoke.model_questions q where q.assignment_id = i.assignment_id)
        -- Without a charge, only what has ended without a report.
        and (h.state = 'presumed' or (h.assignment_id is null and a.state in ('refused', 'confirm_timeout',
            'start_timeout', 'lease_lost', 'stalled', 'released', 'canceled')))
),
paid as (
    update convoke.charges c set state = 'spent', tokens = w.tokens, microdollars = w.microdollars
    from was w where c.assignment_id = w.assignment_id
),
made as (
    insert into convoke.charges (assignment_id, task_id, root_id, agent_id, state, tokens, microdollars, settled_at)
    select w.assignment_id, w.task_id, w.root_id, w.agent_id, 'spent', w.tokens, w.microdollars, w.at
    from was w where not w.has_charge and (w.tokens > 0 or w.microdollars > 0)
),
sums as (
    select b.task_id, b.tree, sum(w.tokens_had) as tokens_had, sum(w.tokens) as tokens,
        sum(w.microdollars_had) as microdollars_had, sum(w.microdollars) as microdollars
    from was w join convoke.budgets b
        on (b.task_id = w.task_id and not b.tree) or (b.task_id = w.root_id and b.tree)
    group by b.task_id, b.tree
),
-- The sums are numeric and cannot overflow before they are limited.
corrected as (
    update convoke.budgets b set
        tokens_spent = least(greatest(0, b.tokens_spent + s.tokens - s.tokens_had), coalesce(b.tokens_max, 9223372036854775807) - b.tokens_reserved),
        tokens_over = least(9223372036854775807, b.tokens_over + greatest(0, greatest(0, b.tokens_spent + s.tokens - s.tokens_had)
            - (coalesce(b.tokens_max, 9223372036854775807) - b.tokens_reserved))),
        microdollars_spent = least(greatest(0, b.microdollars_spent + s.microdollars - s.microdollars_had), coalesce(b.microdollars_max, 9223372036854775807) - b.microdollars_reserved),
        microdollars_over = least(9223372036854775807, b.microdollars_over + greatest(0, greatest(0, b.microdollars_spent + s.microdollars - s.microdollars_had)
            - (coalesce(b.microdollars_max, 9223372036854775807) - b.microdollars_reserved)))
    from sums s where b.task_id = s.task_id and b.tree = s.tree
    returning b.task_id
)
insert into convoke.spend as s (org, hour, agent_id, kind, task_id, root_id, provider, model, presumed, tokens,
    microdollars, presumed_microdollars)
select w.org, date_trunc('hour', w.at, 'UTC'), w.agent_id, w.kind, w.task_id, w.root_id, '', '',
    -(w.tokens_had + w.microdollars_had > 0)::integer, w.tokens::numeric - w.tokens_had,
    w.microdollars::numeric - w.microdollars_had, -w.microdollars_had
from was w
-- This makes the rows of budgets locked before those of convoke.spend, as in every transaction.
cross join (select count(*) from corrected) b
where w.tokens <> w.tokens_had or w.microdollars <> w.microdollars_had or w.tokens_had + w.microdollars_had > 0
on conflict (org, hour, agent_id, kind, task_id, provider, model) do update set
    presumed = s.presumed + excluded.presumed, tokens = s.tokens + excluded.tokens,
    microdollars = s.microdollars + excluded.microdollars,
    presumed_microdollars = s.presumed_microdollars + excluded.presumed_microdollars
