-- Refuses a superuser, whatever the settings are: the role '' does not exist, so the statement fails.
select set_config('role', case when exists (select from pg_catalog.pg_roles r where r.rolname = $1 and r.rolsuper)
           then '' else $1 end, true),
       set_config('realtime.topic', $2, true),
       set_config('request.jwt.claims', $3, true),
       set_config('request.jwt.claim.sub', $4, true),
       set_config('request.jwt.claim.role', $1, true),
       set_config('request.headers', $5, true)
