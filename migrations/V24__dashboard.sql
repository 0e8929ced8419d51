-- Sign-ins and sessions of the dashboard. Only the daemon reads and writes them: no role of a token has a privilege
-- here.

-- Sign-in codes that were used. A row outlives its code, so that a code is accepted once even after a crash.
create table convoke.logins (
    id uuid primary key,
    used_at timestamptz not null default clock_timestamp(),
    expires_at timestamptz not null
);

-- Sessions. The cookie has 256 random bits; the table has their SHA-256 only.
create table convoke.sessions (
    id uuid primary key default gen_random_uuid(),
    token_hash bytea not null unique,
    subject text not null,
    org text not null,
    created_at timestamptz not null default clock_timestamp(),
    seen_at timestamptz not null default clock_timestamp(),
    expires_at timestamptz not null
);
