-- The sessions that have not ended, of one person ($2) in an org ($1), or with $3 of everybody there; the last used first.
select s.id, s.subject, s.role, s.created_at, s.seen_at, s.expires_at, s.browser, s.token_hash = $4::bytea as is_own
from convoke.sessions s
where s.org = $1 and ($3::boolean or s.subject = $2)
    and s.expires_at > clock_timestamp() and s.seen_at > clock_timestamp() - $5::bigint * interval '1 ms'
order by s.seen_at desc, s.id limit 200
