-- These agents have arrived: makes tasks due that wait for agents like them.
with able as (
    select t.id from convoke.agents g cross join lateral (
        select w.id from convoke.tasks w
        where w.org = g.org and w.state = 'open' and w.unattended_since is not null and w.bids_close_at is null
            and w.due_at > clock_timestamp() and w.requires <@ g.capabilities
        limit 10000
    ) t
    where g.id = any($1) and g.status = 'present'
),
locked as (
    select t.id from able join convoke.tasks t on t.id = able.id order by t.id for update of t
)
update convoke.tasks t set due_at = clock_timestamp() from locked where t.id = locked.id
