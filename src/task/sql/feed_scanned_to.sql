-- The oldest event that `feed_newest.sql` looks at; no row if it looks at all of them.
select r.seq from convoke.events r where ($1::bigint is null or r.seq < $1) order by r.seq desc offset 199999 limit 1
