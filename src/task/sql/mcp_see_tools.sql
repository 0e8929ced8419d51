-- Compares what a server says about its tools with what was accepted. `accepted` is null for a tool without a row: it
-- was inserted by another transaction meanwhile, or the server has shown too many.
with said as (
    select s.tool, s.sha256, s.body from unnest($3::text[], $4::text[], $5::bytea[]) as s(tool, sha256, body)
),
first as (
    insert into convoke.mcp_pins (agent_id, server, tool, sha256, body)
    select $1, $2, s.tool, s.sha256, s.body from said s
    where not exists (
        select from convoke.mcp_pins p where p.agent_id = $1 and p.server = $2 and p.tool = s.tool
    )
    order by s.tool
    limit greatest(0, 256 - (select count(*) from convoke.mcp_pins p where p.agent_id = $1 and p.server = $2))
    on conflict do nothing
    returning tool
),
changed as (
    update convoke.mcp_pins p set seen_sha256 = s.sha256, seen_body = s.body, seen_at = clock_timestamp()
    from said s
    where p.agent_id = $1 and p.server = $2 and p.tool = s.tool and p.sha256 <> s.sha256
        and p.seen_sha256 is distinct from s.sha256
    returning p.tool
),
-- It says again what was accepted.
restored as (
    update convoke.mcp_pins p set seen_sha256 = null, seen_body = null, seen_at = null
    from said s
    where p.agent_id = $1 and p.server = $2 and p.tool = s.tool and p.sha256 = s.sha256 and p.seen_sha256 is not null
    returning p.tool
)
select s.tool, case when f.tool is not null then true else p.sha256 = s.sha256 end as accepted,
    c.tool is not null as is_news
from said s
left join convoke.mcp_pins p on p.agent_id = $1 and p.server = $2 and p.tool = s.tool
left join first f on f.tool = s.tool
left join changed c on c.tool = s.tool
