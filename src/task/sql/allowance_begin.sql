-- Makes the row of a limit ($1 scope, $2 name) for the day of the question $3, with what was spent of it before.
insert into convoke.allowances (scope, name, day, microdollars)
select $1, $2, d.day, (
    select coalesce(sum(s.microdollars), 0) from convoke.spend s
    where s.hour >= d.day::timestamp at time zone 'UTC'
        and case when $1 = 'provider' then s.provider = $2 else s.org = $2 end
) + (
    select coalesce(sum(q.microdollars), 0) from convoke.model_questions q join convoke.tasks t on t.id = q.task_id
    where q.state = 'sent' and q.id <> $3 and case when $1 = 'provider' then q.provider = $2 else t.org = $2 end
)
from (select (q.asked_at at time zone 'UTC')::date as day from convoke.model_questions q where q.id = $3) d
where not exists (select from convoke.allowances a where a.scope = $1 and a.name = $2 and a.day = d.day)
on conflict do nothing
