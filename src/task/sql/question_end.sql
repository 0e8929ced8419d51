-- Replaces the most of a question by what it used ($3 tokens, $4 microdollars): in its charge, in the budgets and in
-- convoke.spend. A question whose usage was presumed is corrected where it was counted. No row if it has ended, or, if $14,
-- if the assignment that asked it has not written its answer.
with was as (
    select q.id, q.state, q.task_id, q.assignment_id, q.agent_id, q.provider, q.model, q.tokens, q.microdollars,
        coalesce(q.ended_at, clock_timestamp()) as ended_at, (q.asked_at at time zone 'UTC')::date as day,
        $3 - q.tokens as more_tokens, $4 - q.microdollars as more_microdollars
    from convoke.model_questions q
    where q.id = $1 and (q.state = 'sent' or (q.state = 'presumed' and $2::text = 'exact'))
        and (not $14::boolean or exists (select from convoke.steps s where s.task_id = q.task_id and s.run = q.run
            and s.seq = q.seq and s.assignment_id = q.assignment_id and s.state = 'done'))
    for update
),
ended as (
    update convoke.model_questions q set state = $2, tokens = $3, microdollars = $4, ended_at = w.ended_at,
        model_said = $5, input_tokens = $6, cached_tokens = $7, written_tokens = $8, output_tokens = $9,
        reasoning_tokens = $10, named_microdollars = $11, priced_microdollars = $12,
        price_from = case when $12::bigint is null then q.price_from else $13::date end
    from was w where q.id = w.id
    returning q.id
),
charge as (
    select c.assignment_id, c.task_id, c.root_id, c.state, w.more_tokens, w.more_microdollars
    from convoke.charges c join was w on w.assignment_id = c.assignment_id for update of c
),
-- While the assignment works its reservation falls to what is used, and never rises; afterwards its use is corrected.
charged as (
    update convoke.charges c set
        tokens = greatest(0, c.tokens + case when h.state = 'reserved' then least(0, h.more_tokens) else h.more_tokens end),
        microdollars = greatest(0, c.microdollars
            + case when h.state = 'reserved' then least(0, h.more_microdollars) else h.more_microdollars end),
        state = case when h.state <> 'presumed' or exists (
            select from convoke.model_questions q
            where q.assignment_id = c.assignment_id and q.state <> 'exact' and q.id <> $1) then h.state else 'spent' end
    from charge h where c.assignment_id = h.assignment_id
),
released as (
    update convoke.budgets b set tokens_reserved = greatest(0, b.tokens_reserved + least(0, h.more_tokens)),
        microdollars_reserved = greatest(0, b.microdollars_reserved + least(0, h.more_microdollars))
    from charge h
    where h.state = 'reserved' and ((b.task_id = h.task_id and not b.tree) or (b.task_id = h.root_id and b.tree))
    returning b.task_id
),
corrected as (
    update convoke.budgets b set
        tokens_spent = least(greatest(0, b.tokens_spent + h.more_tokens),
            coalesce(b.tokens_max, 9223372036854775807) - b.tokens_reserved),
        tokens_over = least(9223372036854775807, b.tokens_over + greatest(0, greatest(0, b.tokens_spent + h.more_tokens)
            - (coalesce(b.tokens_max, 9223372036854775807) - b.tokens_reserved))),
        microdollars_spent = least(greatest(0, b.microdollars_spent + h.more_microdollars),
            coalesce(b.microdollars_max, 9223372036854775807) - b.microdollars_reserved),
        microdollars_over = least(9223372036854775807, b.microdollars_over
            + greatest(0, greatest(0, b.microdollars_spent + h.more_microdollars)
            - (coalesce(b.microdollars_max, 9223372036854775807) - b.microdollars_reserved)))
    from charge h
    where h.state <> 'reserved' and ((b.task_id = h.task_id and not b.tree) or (b.task_id = h.root_id and b.tree))
    returning b.task_id
),
-- The limits of a day, in the order in which they are held: first that of the provider.
of_provider as (
    update convoke.allowances a set microdollars = a.microdollars + w.more_microdollars
    from was w cross join (select count(*) from released) r cross join (select count(*) from corrected) c
    where a.scope = 'provider' and a.name = w.provider and a.day = w.day
    returning a.name
),
of_org as (
    update convoke.allowances a set microdollars = a.microdollars + w.more_microdollars
    from was w join convoke.tasks t on t.id = w.task_id cross join (select count(*) from of_provider) p
    where a.scope = 'org' and a.name = t.org and a.day = w.day
    returning a.name
)
insert into convoke.spend as s (org, hour, agent_id, kind, task_id, root_id, provider, model, questions, presumed, tokens,
    microdollars, presumed_microdollars, input_tokens, cached_tokens, written_tokens, output_tokens, reasoning_tokens)
select t.org, date_trunc('hour', w.ended_at, 'UTC'), w.agent_id, t.kind, t.id, t.root_id, w.provider, w.model,
    (w.state = 'sent')::integer, ($2 = 'presumed')::integer - (w.state = 'presumed')::integer,
    $3 - case when w.state = 'presumed' then w.tokens else 0 end,
    $4 - case when w.state = 'presumed' then w.microdollars else 0 end,
    case when $2 = 'presumed' then $4 else 0 end - case when w.state = 'presumed' then w.microdollars else 0 end,
    coalesce($6, 0), coalesce($7, 0), coalesce($8, 0), coalesce($9, 0), coalesce($10, 0)
from was w join convoke.tasks t on t.id = w.task_id
-- This makes the rows of budgets and limits locked before the row of convoke.spend, as in every transaction.
cross join (select count(*) from of_org) o
on conflict (org, hour, agent_id, kind, task_id, provider, model) do update set
    questions = s.questions + excluded.questions, presumed = s.presumed + excluded.presumed,
    tokens = s.tokens + excluded.tokens, microdollars = s.microdollars + excluded.microdollars,
    presumed_microdollars = s.presumed_microdollars + excluded.presumed_microdollars,
    input_tokens = s.input_tokens + excluded.input_tokens, cached_tokens = s.cached_tokens + excluded.cached_tokens,
    written_tokens = s.written_tokens + excluded.written_tokens, output_tokens = s.output_tokens + excluded.output_tokens,
    reasoning_tokens = s.reasoning_tokens + excluded.reasoning_tokens
returning s.task_id
