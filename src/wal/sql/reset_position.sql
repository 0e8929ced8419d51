insert into convoke.wal_position (slot, system_id, lsn, updated_at)
values ($1, $2, $3, now())
on conflict (slot) do update
   set system_id = excluded.system_id, lsn = excluded.lsn, updated_at = excluded.updated_at
