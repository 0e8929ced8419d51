-- Marks agents that are defined and arrive by themselves as expected, and inserts those that were never present.
with input as (
    select * from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::jsonb[], $6::integer[])
    as i(id, org, kind, description, capabilities, slots)
),
unmarked as (
    update convoke.agents g set expected = false where g.expected and g.id not in (select unnest($1::text[]))
)
insert into convoke.agents as g (id, org, kind, description, capabilities, slots, status, expected, last_seen_at)
select i.id, i.org, i.kind, i.description, array(select jsonb_array_elements_text(i.capabilities)), i.slots, 'gone',
    true, null
from input i order by i.id
on conflict (id) do update set expected = true,
    -- A present agent keeps what it registered itself.
    org = case g.status when 'gone' then excluded.org else g.org end,
    capabilities = case g.status when 'gone' then excluded.capabilities else g.capabilities end
