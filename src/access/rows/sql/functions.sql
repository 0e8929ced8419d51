-- The functions with oids $1, of operators $2, and of conversions to types $3; and auth.jwt(), which others may call.
select p.oid, n.nspname = 'pg_catalog' as builtin, p.provolatile = 'i' as immutable, p.proname::text as name,
    f.asked,
    n.nspname = 'auth' and p.proname = 'jwt' and p.pronargs = 0 as is_jwt,
    case when l.lanname = 'sql' and p.prosqlbody is null
        and coalesce(p.proconfig, array['search_path=""']) = array['search_path=""'] then p.prosrc end as source
from (
    select oid, bool_or(asked) as asked
    from (
        select unnest($1::oid[]) as oid, true as asked
        union all
        select o.oprcode::oid, true from pg_catalog.pg_operator o where o.oid = any($2)
        union all
        select t.typinput::oid, true from pg_catalog.pg_type t where t.oid = any($3)
        union all
        select j.oid, false
        from pg_catalog.pg_proc j
        where j.proname = 'jwt' and j.pronargs = 0 and j.pronamespace = pg_catalog.to_regnamespace('auth')
    ) each
    group by oid
) f
join pg_catalog.pg_proc p on p.oid = f.oid
join pg_catalog.pg_namespace n on n.oid = p.pronamespace
join pg_catalog.pg_language l on l.oid = p.prolang
