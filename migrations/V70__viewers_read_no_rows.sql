-- As before, and without viewers of the dashboard (claim `dash`): they read through the daemon, which knows whether they
-- get the data of tasks (`dashboard.data`). A value that is no role counts as `viewer`, like over HTTP.
create or replace function convoke.sees(org text) returns boolean language sql stable as $$
    select coalesce(case
        when claims ? 'dash' and claims ->> 'role' is distinct from 'service_role'
            and coalesce(claims ->> 'dash', '') not in ('operator', 'admin') then false
        when claims ? 'org' then jsonb_typeof(claims -> 'org') = 'string' and claims ->> 'org' = org
        else claims ->> 'role' <> 'anon' and org = 'default'
    end, false)
    from (select nullif(current_setting('request.jwt.claims', true), '')::jsonb as claims) as token
$$;
