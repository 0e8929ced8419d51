update convoke.sessions s set seen_at = clock_timestamp()
where s.token_hash = $1::bytea and s.expires_at > clock_timestamp()
    and s.seen_at > clock_timestamp() - $2::bigint * interval '1 ms'
returning s.subject, s.org, s.role, s.expires_at
