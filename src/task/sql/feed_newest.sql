-- The events of an org ($1) below $2, the newest first, of these types ($3) and of this agent ($4). At most 200,000
-- events are looked at, of whatever org. The bodies of long events are left out.
select e.seq, e.at, e.task_id, e.agent_id, e.epoch, e.type, octet_length(e.body::text) as body_bytes,
    case when octet_length(e.body::text) <= 4096 then e.body end as body
from (
    select r.* from convoke.events r where ($2::bigint is null or r.seq < $2) order by r.seq desc limit 200000
) e
where e.org = $1 and ($3::text[] is null or e.type = any($3)) and ($4::text is null or e.agent_id = $4)
order by e.seq desc limit $5
