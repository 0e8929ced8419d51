select t.* from unnest($1::bigint[], $2::bigint[]) as c(class, most)
cross join lateral (
    select t.id, t.org, t.kind, t.requires, t.class, t.round, t.rounds_empty, t.epoch, t.attempt, t.policy, t.tried,
        t.unable, t.requester, t.prefer, t.run_at, t.deadline_at
    from convoke.tasks t
    where t.class = c.class and t.state = 'open' and t.due_at is null
        -- A task that waits for the busy agent that it names must not block later tasks either.
        and (t.policy ->> 'award' is distinct from 'direct' or not exists (select from convoke.agents g
            where g.id = t.policy ->> 'agent' and g.status = 'present' and g.slots_used >= g.slots))
        -- A task that waits for a busy agent, because the free agents have tried, must not block later tasks.
        -- After an empty round all are asked again.
        and (t.tried = '{}' or t.rounds_empty > 0 or t.policy ->> 'award' = 'direct'
            or exists (select from convoke.agents g
                where g.status = 'present' and g.org = t.org and g.capabilities @> t.requires
                    and not g.id = any(t.tried) and g.slots_used < g.slots)
            or not exists (select from convoke.agents g
                where g.status = 'present' and g.org = t.org and g.capabilities @> t.requires
                    and not g.id = any(t.tried)))
    order by t.priority desc, t.id limit c.most
    for update skip locked
) t
