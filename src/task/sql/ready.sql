select t.* from unnest($1::bigint[], $2::bigint[]) as c(class, most)
cross join lateral (
    select t.id, t.org, t.kind, t.requires, t.class, t.round, t.rounds_empty, t.epoch, t.attempt, t.policy, t.tried
    from convoke.tasks t
    where t.class = c.class and t.state = 'open' and t.due_at is null
    order by t.priority desc, t.id limit c.most
    for update skip locked
) t
