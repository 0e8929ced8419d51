with old as (
    select t.id from convoke.tasks t
    where t.id > $1
        -- Ids begin with their time, so only rows that may be old are read.
        and t.id < (lpad(to_hex((extract(epoch from clock_timestamp()) * 1000)::bigint - $2), 12, '0')
            || repeat('0', 20))::uuid
        and t.state in ('completed', 'failed', 'canceled')
        and t.updated_at < clock_timestamp() - $2 * interval '1 ms'
        and not t.followed and not (t.has_children and t.state <> 'completed')
        and not exists (select from convoke.tasks d where d.state = 'blocked' and d.depends_on @> array[t.id])
    order by t.id limit 500
    for update skip locked
),
events as (
    delete from convoke.events e using old where e.task_id = old.id
),
loose as (
    delete from convoke.events where seq in (
        select seq from convoke.events where task_id is null and at < clock_timestamp() - $2 * interval '1 ms'
        order by seq limit 500)
)
delete from convoke.tasks t using old where t.id = old.id
returning t.id
