insert into convoke.agents as g (id, org, kind, description, capabilities, slots, definition_hash, terms, node_id)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
on conflict (id) do update set org = excluded.org, kind = excluded.kind, description = excluded.description,
    capabilities = excluded.capabilities, slots = excluded.slots, definition_hash = excluded.definition_hash,
    definition_version = least(g.definition_version, 9007199254740991) + (g.definition_hash <> excluded.definition_hash)::integer,
    terms = excluded.terms, node_id = excluded.node_id,
    incarnation = case when g.incarnation not between 0 and 9007199254740990 then 1
        else g.incarnation + (g.status = 'gone' or g.incarnation is distinct from $10::bigint)::integer end,
    status = 'present', last_seen_at = clock_timestamp()
-- An agent without a file ($11) stays in its org; an operator's file may move it.
where (g.kind = excluded.kind or g.status = 'gone') and ($11 or g.org = excluded.org)
returning incarnation
