-- Registers hosted agents for this node ($9). Each gets a new incarnation; after a reload of definitions ($10), only the
-- rows that are new or different are written, and an agent that this node has registered before keeps its incarnation.
insert into convoke.agents as g (id, org, kind, description, capabilities, slots, definition_hash, terms, node_id)
select i.id, i.org, i.kind, i.description, array(select jsonb_array_elements_text(i.capabilities)), i.slots, i.hash,
    i.terms, $9::uuid
from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::jsonb[], $6::integer[], $7::text[], $8::jsonb[])
    as i(id, org, kind, description, capabilities, slots, hash, terms)
order by i.id
on conflict (id) do update set org = excluded.org, kind = excluded.kind, description = excluded.description,
    capabilities = excluded.capabilities, slots = excluded.slots, definition_hash = excluded.definition_hash,
    definition_version = least(g.definition_version, 9007199254740991) + (g.definition_hash <> excluded.definition_hash)::integer,
    terms = excluded.terms, node_id = excluded.node_id,
    -- An incarnation written by hand must not prevent the start of the host.
    incarnation = case when g.incarnation not between 0 and 9007199254740990 then 1
        when $10::boolean and g.node_id = excluded.node_id then g.incarnation
        else g.incarnation + 1 end,
    status = 'present', last_seen_at = clock_timestamp()
where not $10::boolean or g.status <> 'present' or g.definition_hash <> excluded.definition_hash
    or g.node_id is distinct from excluded.node_id
returning id, incarnation
