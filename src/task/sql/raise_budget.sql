-- A new budget of a task that had none starts at 0, whatever was used before.
with set_ as (
    insert into convoke.budgets as b (task_id, tree, tokens_max, microdollars_max) values ($1, $2, $3, $4)
    on conflict (task_id, tree) do update set tokens_max = coalesce(excluded.tokens_max, b.tokens_max),
        microdollars_max = coalesce(excluded.microdollars_max, b.microdollars_max)
    where b.tokens_reserved + b.tokens_spent <= coalesce(excluded.tokens_max, b.tokens_max, 9223372036854775807)
        and b.microdollars_reserved + b.microdollars_spent
            <= coalesce(excluded.microdollars_max, b.microdollars_max, 9223372036854775807)
    returning task_id
)
insert into convoke.events (org, task_id, epoch, type, body)
select t.org, t.id, t.epoch, 'budget', jsonb_strip_nulls(jsonb_build_object('tree', $2::boolean, 'tokens', $3::bigint,
    'microdollars', $4::bigint, 'by', $5::text))
from set_ join convoke.tasks t on t.id = set_.task_id
returning seq
