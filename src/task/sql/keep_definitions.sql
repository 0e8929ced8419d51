-- Keeps the definitions that agents are registered with, the latest 100 of each agent.
with kept as (
    insert into convoke.definition_versions as v (agent_id, version, hash, body)
    select i.id, g.definition_version, i.hash, i.body
    from unnest($1::text[], $2::text[], $3::json[]) as i(id, hash, body)
    join convoke.agents g on g.id = i.id and g.definition_hash = i.hash
    order by i.id
    on conflict (agent_id, version) do update set hash = excluded.hash, body = excluded.body
        where v.hash <> excluded.hash
    returning agent_id, version
)
delete from convoke.definition_versions v using kept k where v.agent_id = k.agent_id and v.version <= k.version - 100
