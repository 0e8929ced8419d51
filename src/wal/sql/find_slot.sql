select coalesce(plugin::text, ''),
       coalesce(database::text, ''),
       coalesce(wal_status = 'lost', false),
       confirmed_flush_lsn
  from pg_replication_slots
 where slot_name = $1
