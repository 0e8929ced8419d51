-- What types $1 are made of: the attributes of a composite, the base of a domain, the element of an array.
select
    t.oid,
    t.typname::text as name,
    t.typtype::text as kind,
    case when t.typtype = 'd' then t.typbasetype else 0 end as base,
    case when t.typcategory = 'A' then t.typelem else 0 end as element,
    t.typdelim::text as delimiter,
    coalesce(array(
        select a.attname::text
        from pg_catalog.pg_attribute a
        where a.attrelid = t.typrelid and t.typtype = 'c' and a.attnum > 0 and not a.attisdropped
        order by a.attnum
    ), '{}') as names,
    coalesce(array(
        select a.atttypid
        from pg_catalog.pg_attribute a
        where a.attrelid = t.typrelid and t.typtype = 'c' and a.attnum > 0 and not a.attisdropped
        order by a.attnum
    ), '{}') as types
from pg_catalog.pg_type t
where t.oid = any($1)
