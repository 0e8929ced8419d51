-- Adds changes to their bursts. The rows of these bursts and their tasks are locked.
with input as (
    select i.*, '0/0'::pg_lsn + i.lsn::numeric as place
    from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::integer[], $7::bigint[], $8::boolean[])
    with ordinality as i(trigger, key, agent_id, org, lsn, index, quiet_ms, merges, n)
),
fresh as (
    insert into convoke.wakes (trigger, agent_id, lsn, index)
    select trigger, agent_id, place, index from input
    on conflict do nothing
    returning trigger, lsn, index
),
groups as (
    select i.trigger, i.key, count(*) as changes, max(i.n) as last
    from input i join fresh f on f.trigger = i.trigger and f.lsn = i.place and f.index = i.index
    group by i.trigger, i.key
),
gathered as (
    insert into convoke.bursts as b (trigger, key, agent_id, org, merges, changes, first_at, due_at)
    select i.trigger, i.key, i.agent_id, i.org, i.merges, g.changes, now.at, now.at + i.quiet_ms * interval '1 ms'
    from groups g join input i on i.n = g.last, (select clock_timestamp() as at) as now
    on conflict (trigger, key) do update set
        agent_id = excluded.agent_id,
        org = excluded.org,
        merges = excluded.merges,
        -- A pending burst continues, and so does one with an unassigned task; otherwise another begins.
        changes = excluded.changes + case when b.due_at is not null or exists (
            select from convoke.tasks t where t.id = b.task_id and t.state = 'open' and t.epoch = 0)
            then b.changes else 0 end,
        first_at = case when b.due_at is not null or exists (
            select from convoke.tasks t where t.id = b.task_id and t.state = 'open' and t.epoch = 0)
            then b.first_at else excluded.first_at end,
        -- An endless burst is due after ten quiet times.
        due_at = case
            when b.due_at is not null
                then least(excluded.due_at, b.first_at + 10 * (excluded.due_at - excluded.first_at))
            when exists (select from convoke.tasks t where t.id = b.task_id and t.state = 'open' and t.epoch = 0)
                then null
            else excluded.due_at end,
        task_id = (select t.id from convoke.tasks t where t.id = b.task_id and t.state = 'open' and t.epoch = 0)
    returning trigger, key, changes, task_id
)
select g.last as n, b.trigger, b.key, b.changes, b.task_id
from gathered b join groups g on g.trigger = b.trigger and g.key = b.key
order by g.last
