-- Replaces what was reserved for a step by what the assignment has used so far ($2 tokens, $3 microdollars).
with was as (
    select c.assignment_id, c.task_id, c.root_id, c.tokens as tokens_had, c.microdollars as microdollars_had,
        least(c.tokens, $2) as tokens, least(c.microdollars, $3) as microdollars
    from convoke.charges c where c.assignment_id = $1 and c.state = 'reserved' for update of c
),
paid as (
    update convoke.charges c set tokens = w.tokens, microdollars = w.microdollars
    from was w where c.assignment_id = w.assignment_id
)
update convoke.budgets b set tokens_reserved = greatest(0, b.tokens_reserved - (w.tokens_had - w.tokens)),
    microdollars_reserved = greatest(0, b.microdollars_reserved - (w.microdollars_had - w.microdollars))
from was w where (b.task_id = w.task_id and not b.tree) or (b.task_id = w.root_id and b.tree)
