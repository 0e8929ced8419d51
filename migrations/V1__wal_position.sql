-- Up to where each replication slot's changes are durably handed off. The
-- runner of the migrations has already made the schema, for its history table.
create table convoke.wal_position (
  slot text primary key,
  system_id text,
  lsn pg_lsn not null,
  updated_at timestamptz not null default clock_timestamp()
);
