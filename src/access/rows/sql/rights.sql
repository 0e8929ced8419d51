-- Rights of role $2 on table $1, and the table whose policies decide: $1 if it has row security, else the topmost
-- partitioned ancestor that has. No row if there is no such table.
with recursive up as (
    select c.oid, 0 as depth, c.relispartition
    from pg_catalog.pg_class c
    where c.oid = $1
    union all
    select p.oid, up.depth + 1, p.relispartition
    from up
    join pg_catalog.pg_inherits i on i.inhrelid = up.oid
    join pg_catalog.pg_class p on p.oid = i.inhparent
    where up.relispartition
),
governing as (
    select c.oid, c.relname, c.relnamespace, c.relowner, c.relrowsecurity, c.relforcerowsecurity
    from up
    join pg_catalog.pg_class c on c.oid = up.oid
    order by (up.depth = 0 and c.relrowsecurity) desc,
        c.relrowsecurity desc,
        case when c.relrowsecurity then - up.depth else up.depth end
    limit 1
)
select
    v.oid as viewer,
    g.oid as governing,
    not g.relrowsecurity as off,
    v.rolsuper or v.rolbypassrls
        or (pg_catalog.pg_has_role(v.oid, g.relowner, 'usage') and not g.relforcerowsecurity) as exempt,
    pg_catalog.format('%I.%I', n.nspname, g.relname) as row_type,
    pg_catalog.quote_ident(g.relname) as alias,
    (select c.relkind = 'p' from pg_catalog.pg_class c where c.oid = $1) as partitioned,
    array(select up.oid from up order by up.depth) as related,
    array(
        select a.attname::text
        from pg_catalog.pg_attribute a
        where a.attrelid = $1 and a.attnum > 0 and not a.attisdropped
            and exists (
                select
                from up
                join pg_catalog.pg_class c on c.oid = up.oid
                join pg_catalog.pg_attribute b
                    on b.attrelid = up.oid and b.attname = a.attname and b.attnum > 0 and not b.attisdropped
                where pg_catalog.has_schema_privilege(v.oid, c.relnamespace, 'usage')
                    and pg_catalog.has_column_privilege(v.oid, c.oid, b.attnum, 'select')
            )
    ) as selectable,
    array(
        select a.attname::text
        from pg_catalog.pg_index i
        join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = any(i.indkey)
        where i.indrelid = $1 and i.indisprimary
    ) as key
from governing g
join pg_catalog.pg_namespace n on n.oid = g.relnamespace
-- A superuser is never a role of a token, whatever the settings are: policies would not limit it.
left join pg_catalog.pg_roles v on v.rolname = $2 and not v.rolsuper
