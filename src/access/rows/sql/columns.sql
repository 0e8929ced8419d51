-- The current columns of table $1, in the order of its row type.
select
    a.attname::text as name,
    pg_catalog.quote_ident(a.attname) as quoted,
    a.attnum,
    a.atttypid as type_oid,
    t.typtype = 'd' as is_domain,
    case when a.attgenerated <> '' then pg_catalog.pg_get_expr(d.adbin, d.adrelid) end as generated
from pg_catalog.pg_attribute a
join pg_catalog.pg_type t on t.oid = a.atttypid
left join pg_catalog.pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
where a.attrelid = $1 and a.attnum > 0 and not a.attisdropped
order by a.attnum
