-- Changes whenever what decides about tables $1, functions $2 and roles $3 may have changed.
select concat_ws(
    ' ',
    (select concat(count(*), ':', sum(hashtextextended(concat(oid, '.', xmin), 0))) from pg_catalog.pg_policy),
    (select concat(count(*), ':', sum(hashtextextended(concat(oid, '.', xmin), 0))) from pg_catalog.pg_namespace),
    (
        select concat(count(*), ':', sum(hashtextextended(concat(roleid, '.', member, '.', xmin), 0)))
        from pg_catalog.pg_auth_members
    ),
    (
        select concat(count(*), ':', sum(hashtextextended(concat(oid, '.', xmin), 0)))
        from pg_catalog.pg_class
        where oid = any($1)
    ),
    (
        select concat(count(*), ':', sum(hashtextextended(concat(attrelid, '.', attnum, '.', xmin), 0)))
        from pg_catalog.pg_attribute
        where attrelid = any($1)
    ),
    (
        select concat(count(*), ':', sum(hashtextextended(concat(inhrelid, '.', inhparent, '.', xmin), 0)))
        from pg_catalog.pg_inherits
        where inhrelid = any($1)
    ),
    (
        select concat(count(*), ':', sum(hashtextextended(concat(indexrelid, '.', xmin), 0)))
        from pg_catalog.pg_index
        where indrelid = any($1)
    ),
    (
        select concat(count(*), ':', sum(hashtextextended(concat(oid, '.', xmin), 0)))
        from pg_catalog.pg_proc
        where oid = any($2)
    ),
    (
        select concat(count(*), ':', sum(hashtextextended(concat(oid, '.', rolsuper, '.', rolbypassrls, '.', rolinherit), 0)))
        from pg_catalog.pg_roles
        where rolname = any($3)
    )
)
