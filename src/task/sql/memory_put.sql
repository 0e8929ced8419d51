-- Writes an entry, if there is room for it and its version is the expected one: null is any, 0 is that of an entry that
-- does not exist. Two writers at the same moment may exceed the room by one entry.
with used as (
    select coalesce(sum(m.bytes), 0) + $5::integer > 4194304 or count(*) >= 1000 as is_full
    from convoke.memories m
    where m.org = $1 and m.agent_id = $2 and m.key <> $3 and (m.expires_at is null or m.expires_at > clock_timestamp())
),
gone as (
    delete from convoke.memories m
    where m.org = $1 and m.agent_id = $2 and m.key <> $3 and m.expires_at <= clock_timestamp()
),
before as (
    select m.version from convoke.memories m
    where m.org = $1 and m.agent_id = $2 and m.key = $3 and (m.expires_at is null or m.expires_at > clock_timestamp())
),
put as (
    insert into convoke.memories as m (org, agent_id, key, value, bytes, task_id, run, seq, expires_at)
    select $1, $2, $3, $4::json, $5::integer, $7::uuid, $8::integer, $9::integer,
        clock_timestamp() + $10::integer * interval '1 day'
    from used
    where not used.is_full and ($6::bigint is null or $6 = coalesce((select version from before), 0))
    on conflict (org, agent_id, key) do update set value = excluded.value, bytes = excluded.bytes,
        version = m.version + 1, task_id = excluded.task_id, run = excluded.run, seq = excluded.seq,
        updated_at = clock_timestamp(), expires_at = excluded.expires_at
    -- Another writer may have been faster since this statement began.
    where $6::bigint is null or m.version = $6 or m.expires_at <= clock_timestamp()
    returning m.version
)
select (select version from put) as written, used.is_full, (select version from before) as before from used
