select
  current_setting('server_version_num')::int as version,
  current_setting('server_version') as version_text,
  pg_is_in_recovery() as standby,
  current_setting('transaction_read_only') = 'on' as read_only,
  current_setting('wal_level') as wal_level,
  current_setting('max_replication_slots')::int as slots_max,
  (select count(*)::int from pg_replication_slots) as slots,
  exists (select from pg_replication_slots
          where database = current_database() and plugin = 'pgoutput') as has_slot,
  current_setting('max_wal_senders')::int as senders_max,
  (select count(*)::int from pg_stat_activity where backend_type = 'walsender') as senders,
  coalesce((select setting::bigint from pg_settings where name = 'max_slot_wal_keep_size'), -1)
    as slot_wal_keep_mib,
  current_setting('fsync') as fsync,
  (select rolreplication or rolsuper
          or exists (select from pg_roles r
                     where r.rolname = 'rds_replication' and pg_has_role(current_user, r.oid, 'member'))
   from pg_roles where rolname = current_user) as may_replicate,
  has_database_privilege(current_database(), 'create') as may_create,
  case when to_regnamespace('convoke') is not null
       then has_schema_privilege('convoke', 'create') end as may_fill_schema,
  (select pg_encoding_to_char(encoding)::text from pg_database where datname = current_database()) as encoding,
  clock_timestamp() as now
