-- One statement, so that a code never makes two sessions and a failure leaves neither.
with used as (
    insert into convoke.logins (id, expires_at) values ($1::uuid, $2::timestamptz) on conflict do nothing returning id
),
-- The earlier session of this browser ends: a session id that somebody planted before the sign-in is worth nothing.
replaced as (
    delete from convoke.sessions s using used
    where s.token_hash = $6::bytea or s.expires_at < clock_timestamp()
        or s.seen_at < clock_timestamp() - $7::bigint * interval '1 ms'
),
-- A day longer than the code is valid: the clock that signed it may be behind.
forgotten as (
    delete from convoke.logins l using used where l.expires_at < clock_timestamp() - interval '1 day'
)
insert into convoke.sessions (token_hash, subject, org, role, expires_at, browser)
select $3::bytea, $4::text, $5::text, $9::text, clock_timestamp() + $8::bigint * interval '1 ms',
    $10::text from used
returning subject, org, role, expires_at
