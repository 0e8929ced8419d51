insert into convoke.wal_position as stored (slot, lsn, updated_at)
values ($1, $2, now())
on conflict (slot) do update
   set lsn = excluded.lsn, updated_at = excluded.updated_at
 where stored.lsn < excluded.lsn
