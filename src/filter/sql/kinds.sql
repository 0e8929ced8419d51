-- How the columns of these tables compare: their types with domains taken off, their collations, the labels of enums.
with recursive columns as (
    select a.attrelid, a.attname, a.atttypid, a.attcollation
    from pg_catalog.pg_attribute a
    where a.attrelid = any ($1::oid[]) and a.attnum > 0 and not a.attisdropped
),
base (declared, type) as (
    select distinct atttypid, atttypid from columns
    union all
    select b.declared, t.typbasetype from base b join pg_catalog.pg_type t on t.oid = b.type where t.typtype = 'd'
)
select c.attrelid as "table", c.attname::text as "column", c.atttypid as type_oid,
    t.typname::text as name, n.nspname::text as schema, t.typtype::text as type, t.typcategory::text as category,
    pg_catalog.format_type(t.oid, null) as type_name,
    case when c.attcollation <> t.typcollation then '"' || replace(cn.nspname, '"', '""') || '"."'
        || replace(co.collname, '"', '""') || '"' end as collation,
    coalesce(co.collisdeterministic, true) as deterministic,
    -- Whether the collation's order is that of the bytes; nothing for types without one.
    case when c.attcollation = 0 then null
        when co.collprovider = 'd' then d.datcollate in ('C', 'POSIX') and coalesce(to_jsonb(d) ->> 'datlocprovider', 'c') = 'c'
        else co.collprovider = 'c' and coalesce(co.collcollate in ('C', 'POSIX'), false) end as bytewise,
    array(select e.enumlabel::text from pg_catalog.pg_enum e where e.enumtypid = t.oid order by e.enumsortorder) as labels
from columns c
join base b on b.declared = c.atttypid
join pg_catalog.pg_type t on t.oid = b.type and t.typtype <> 'd'
join pg_catalog.pg_namespace n on n.oid = t.typnamespace
left join pg_catalog.pg_collation co on co.oid = c.attcollation
left join pg_catalog.pg_namespace cn on cn.oid = co.collnamespace
join pg_catalog.pg_database d on d.datname = current_database()
