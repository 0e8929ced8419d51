with page as (
    select seq, at, task_id, agent_id, epoch, type, body from convoke.events
    where task_id = $1 and seq > $2 order by seq limit $3
),
sized as (
    select page.*, row_number() over oldest as place, sum(octet_length(body::text)) over oldest as bytes
    from page window oldest as (order by seq)
)
-- The first row always, then as many as fit 16 MiB.
select * from sized where place = 1 or bytes <= 16777216 order by seq
