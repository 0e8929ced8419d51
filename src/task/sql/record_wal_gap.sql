insert into convoke.events (org, type, body) values ('default', 'wal_gap', $1)
