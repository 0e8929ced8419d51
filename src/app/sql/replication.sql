-- The daemon's slot, what its publications hold, and the schema's version.
select
    (select s.active from pg_replication_slots s where s.slot_name = $1 and s.database = current_database()) as active,
    (select s.wal_status from pg_replication_slots s where s.slot_name = $1 and s.database = current_database())
        as wal_status,
    (select pg_wal_lsn_diff(pg_current_wal_lsn(), s.confirmed_flush_lsn)::bigint
        from pg_replication_slots s where s.slot_name = $1 and s.database = current_database()) as lag_bytes,
    (select coalesce(array_agg(p.pubname::text order by p.pubname), '{}') from pg_publication p
        where p.pubname in ('convoke', 'supabase_realtime')) as publications,
    to_regclass('convoke.tasks') is not null as migrated
