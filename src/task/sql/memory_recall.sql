-- The entries whose key begins with a text and which have all of the words, the newest first.
select m.key, m.agent_id = '' as of_org, m.value, m.version, m.bytes
from convoke.memories m
where m.org = $1 and m.agent_id = any($2::text[]) and starts_with(m.key, $3)
    and ($4 = '' or to_tsvector('simple', m.key || ' ' || m.value::text) @@ plainto_tsquery('simple', $4))
    and (m.expires_at is null or m.expires_at > clock_timestamp())
order by m.updated_at desc, m.key
limit $5
