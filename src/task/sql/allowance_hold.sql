-- Holds the most of the question $3 of a limit ($1 scope, $2 name, $4 microdollars of a day), if it fits.
with question as (
    select (q.asked_at at time zone 'UTC')::date as day, q.microdollars from convoke.model_questions q where q.id = $3
),
held as (
    update convoke.allowances a set microdollars = a.microdollars + q.microdollars
    from question q
    where a.scope = $1 and a.name = $2 and a.day = q.day and a.microdollars + q.microdollars <= $4::bigint
    returning a.microdollars, q.microdollars as most
)
select exists (select from held) as fits,
    coalesce((select h.microdollars >= 0.8 * $4::bigint and h.microdollars - h.most < 0.8 * $4::bigint from held h), false)
        as is_near,
    ceil(extract(epoch from (q.day + 1)::timestamp - (clock_timestamp() at time zone 'UTC')))::bigint as left_seconds
from question q
