-- The events of an org ($1) after $2, the oldest first, of these types ($3) and of this agent ($4), and before them those
-- of the 5 seconds before $2: numbers do not commit in order, so a lower number may have come meanwhile. One statement,
-- so that `reached` and the events are of one snapshot. At most 200,000 later and 20,000 earlier events are looked at.
with reached as (
    select max(n.seq) as seq from (
        select r.seq from convoke.events r where r.seq > $2 order by r.seq limit 200000
    ) n
),
earlier as (
    select l.* from convoke.events l where l.seq <= $2 order by l.seq desc limit 20000
),
again as (
    select e.* from earlier e
    where e.at >= (select o.at from earlier o order by o.seq desc limit 1) - interval '5 s'
),
later as (
    select r.* from (
        select n.* from convoke.events n where n.seq > $2 order by n.seq limit 200000
    ) r
    where r.org = $1 and ($3::text[] is null or r.type = any($3)) and ($4::text is null or r.agent_id = $4)
    order by r.seq limit $5
),
found as (
    select a.* from again a
    where a.org = $1 and ($3::text[] is null or a.type = any($3)) and ($4::text is null or a.agent_id = $4)
    union all
    select * from later
)
select reached.seq as reached, f.seq, f.at, f.task_id, f.agent_id, f.epoch, f.type,
    octet_length(f.body::text) as body_bytes, case when octet_length(f.body::text) <= 4096 then f.body end as body
from reached left join found f on true
order by f.seq
