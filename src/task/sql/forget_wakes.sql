delete from convoke.wakes
where at < clock_timestamp() - interval '1 hour' and lsn < (select min(lsn) from convoke.wal_position)
