-- Replaces reservations by use, and counts the use of assignments that end in convoke.spend. Use above the reservation
-- and the limit is counted as over.
with input as (
    select * from unnest($1::uuid[], $2::boolean[], $3::bigint[], $4::bigint[], $5::boolean[])
    as i(assignment_id, known, tokens, microdollars, counts)
),
held as (
    select c.assignment_id, c.state, c.tokens, c.microdollars
    from convoke.charges c join input i on i.assignment_id = c.assignment_id for update of c
),
-- Of an assignment that asked models, the questions are the use, whatever it reports.
asked as (
    select q.assignment_id, sum(q.tokens) as tokens, sum(q.microdollars) as microdollars,
        bool_or(q.state <> 'exact') as presumed
    from convoke.model_questions q join input i on i.assignment_id = q.assignment_id group by q.assignment_id
),
-- A question without a known end counts as its most.
lost as (
    update convoke.model_questions q set state = 'presumed', ended_at = clock_timestamp()
    from input i where q.assignment_id = i.assignment_id and q.state = 'sent'
    returning q.assignment_id, q.task_id, q.agent_id, q.provider, q.model, q.tokens, q.microdollars
),
was as (
    select i.assignment_id, i.counts, a.task_id, t.root_id, t.org, t.kind, a.agent_id,
        h.assignment_id is not null as has_charge, q.assignment_id is not null as has_asked,
        coalesce(h.tokens, 0) as tokens_had, coalesce(h.microdollars, 0) as microdollars_had,
        case when q.assignment_id is not null then least(q.tokens, 9e18)::bigint when i.known then i.tokens
            else coalesce(h.tokens, i.tokens) end as tokens,
        case when q.assignment_id is not null then least(q.microdollars, 9e18)::bigint when i.known then i.microdollars
            else coalesce(h.microdollars, i.microdollars) end as microdollars,
        coalesce(q.presumed, not i.known) as presumed
    from input i join convoke.assignments a on a.id = i.assignment_id join convoke.tasks t on t.id = a.task_id
    left join held h on h.assignment_id = i.assignment_id left join asked q on q.assignment_id = i.assignment_id
    where coalesce(h.state, 'reserved') = 'reserved'
),
paid as (
    update convoke.charges c set state = case when w.presumed then 'presumed' else 'spent' end, tokens = w.tokens,
        microdollars = w.microdollars, settled_at = clock_timestamp()
    from was w where c.assignment_id = w.assignment_id
),
made as (
    insert into convoke.charges (assignment_id, task_id, root_id, agent_id, state, tokens, microdollars, settled_at)
    select w.assignment_id, w.task_id, w.root_id, w.agent_id, case when w.presumed then 'presumed' else 'spent' end,
        w.tokens, w.microdollars, clock_timestamp()
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
settled as (
    update convoke.budgets b set
        tokens_reserved = greatest(0, b.tokens_reserved - s.tokens_had),
        tokens_spent = least(b.tokens_spent + s.tokens, coalesce(b.tokens_max, 9223372036854775807) - greatest(0, b.tokens_reserved - s.tokens_had)),
        tokens_over = least(9223372036854775807, b.tokens_over + greatest(0, b.tokens_spent + s.tokens
            - (coalesce(b.tokens_max, 9223372036854775807) - greatest(0, b.tokens_reserved - s.tokens_had)))),
        microdollars_reserved = greatest(0, b.microdollars_reserved - s.microdollars_had),
        microdollars_spent = least(b.microdollars_spent + s.microdollars, coalesce(b.microdollars_max, 9223372036854775807) - greatest(0, b.microdollars_reserved - s.microdollars_had)),
        microdollars_over = least(9223372036854775807, b.microdollars_over + greatest(0, b.microdollars_spent + s.microdollars
            - (coalesce(b.microdollars_max, 9223372036854775807) - greatest(0, b.microdollars_reserved - s.microdollars_had))))
    from sums s where b.task_id = s.task_id and b.tree = s.tree
    returning b.task_id
),
-- Questions are counted one by one; a report here. What used nothing is counted without its task.
counted as (
    select w.org, w.agent_id, w.kind, '' as provider, '' as model, w.counts::integer as attempts, 0 as questions,
        case when w.has_asked then 0 else w.tokens::numeric end as tokens,
        case when w.has_asked then 0 else w.microdollars::numeric end as microdollars, w.presumed, w.task_id, w.root_id
    from was w
    union all
    select t.org, l.agent_id, t.kind, l.provider, l.model, 0, 1, l.tokens, l.microdollars, true, t.id, t.root_id
    from lost l join convoke.tasks t on t.id = l.task_id
),
posted as (
    select c.org, c.agent_id, c.kind, c.provider, c.model, c.attempts, c.questions, c.tokens, c.microdollars,
        c.presumed and c.tokens + c.microdollars > 0 as presumed,
        case when c.tokens + c.microdollars > 0 then c.task_id else '00000000-0000-0000-0000-000000000000' end as task_id,
        case when c.tokens + c.microdollars > 0 then c.root_id else '00000000-0000-0000-0000-000000000000' end as root_id
    from counted c where c.attempts + c.questions + c.tokens + c.microdollars > 0
)
insert into convoke.spend as s (org, hour, agent_id, kind, task_id, root_id, provider, model, attempts, questions, presumed,
    tokens, microdollars, presumed_microdollars)
select p.org, date_trunc('hour', clock_timestamp(), 'UTC'), p.agent_id, p.kind, p.task_id, p.root_id, p.provider, p.model,
    sum(p.attempts), sum(p.questions), count(*) filter (where p.presumed), sum(p.tokens), sum(p.microdollars),
    coalesce(sum(p.microdollars) filter (where p.presumed), 0)
from posted p
-- This makes the rows of budgets locked before those of convoke.spend, as in every transaction.
cross join (select count(*) from settled) b
group by 1, 2, 3, 4, 5, 6, 7, 8
-- In the order of the key, so that two transactions cannot wait for each other.
order by 1, 2, 3, 4, 5, 7, 8
on conflict (org, hour, agent_id, kind, task_id, provider, model) do update set
    attempts = s.attempts + excluded.attempts, questions = s.questions + excluded.questions,
    presumed = s.presumed + excluded.presumed, tokens = s.tokens + excluded.tokens,
    microdollars = s.microdollars + excluded.microdollars,
    presumed_microdollars = s.presumed_microdollars + excluded.presumed_microdollars
