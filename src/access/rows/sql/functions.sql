-- The functions behind oids $1, operators $2 and conversions to types $3.
select p.oid, n.nspname = 'pg_catalog' as builtin, p.provolatile = 'i' as immutable, p.proname::text as name,
    case when l.lanname = 'sql' and p.prosqlbody is null and p.proconfig is null then p.prosrc end as source
from (
    select unnest($1::oid[]) as oid
    union
    select o.oprcode::oid from pg_catalog.pg_operator o where o.oid = any($2)
    union
    select t.typinput::oid from pg_catalog.pg_type t where t.oid = any($3)
) f
join pg_catalog.pg_proc p on p.oid = f.oid
join pg_catalog.pg_namespace n on n.oid = p.pronamespace
join pg_catalog.pg_language l on l.oid = p.prolang
