-- Replaces reservations by use. Use above the reservation and the limit is counted as over.
with input as (
    select * from unnest($1::uuid[], $2::boolean[], $3::bigint[], $4::bigint[])
    as i(assignment_id, known, tokens, microdollars)
),
was as (
    select c.assignment_id, c.task_id, c.root_id, c.tokens as tokens_had, c.microdollars as microdollars_had, i.known,
        case when i.known then i.tokens else c.tokens end as tokens,
        case when i.known then i.microdollars else c.microdollars end as microdollars
    from convoke.charges c join input i on i.assignment_id = c.assignment_id
    where c.state = 'reserved' for update of c
),
paid as (
    update convoke.charges c set state = case when w.known then 'spent' else 'presumed' end, tokens = w.tokens,
        microdollars = w.microdollars
    from was w where c.assignment_id = w.assignment_id
),
sums as (
    select b.task_id, b.tree, sum(w.tokens_had) as tokens_had, sum(w.tokens) as tokens,
        sum(w.microdollars_had) as microdollars_had, sum(w.microdollars) as microdollars
    from was w join convoke.budgets b
        on (b.task_id = w.task_id and not b.tree) or (b.task_id = w.root_id and b.tree)
    group by b.task_id, b.tree
)
-- The sums are numeric and cannot overflow before they are limited.
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
