-- The policies of table $1 that limit what role $2 may select, restrictive ones first, in the order of Postgres.
select
    p.polpermissive as permissive,
    pg_catalog.pg_get_expr(p.polqual, p.polrelid) as expression,
    p.polqual::text as tree,
    array(
        select distinct d.refobjsubid
        from pg_catalog.pg_depend d
        where d.classid = 'pg_catalog.pg_policy'::pg_catalog.regclass and d.objid = p.oid
            and d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.refobjid = $1 and d.refobjsubid <> 0
    ) as columns
from pg_catalog.pg_policy p
where p.polrelid = $1 and p.polcmd in ('r', '*') and p.polqual is not null
    and (
        0 = any(p.polroles)
        or exists (select from unnest(p.polroles) r(role) where pg_catalog.pg_has_role($2::oid, r.role, 'usage'))
    )
order by p.polpermissive, p.polname
