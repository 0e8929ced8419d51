-- The next thousand classes with ready tasks, after the last one of the batch before.
with recursive ready as (
    (select class, org, requires from convoke.tasks where state = 'open' and due_at is null and class > $1
        order by class limit 1)
    union all
    select following.* from ready cross join lateral (
        select t.class, t.org, t.requires from convoke.tasks t
        where t.state = 'open' and t.due_at is null and t.class > ready.class
        order by t.class limit 1) following
)
select class, org, requires from ready limit 1000
