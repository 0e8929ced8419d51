-- The tables that publication $1 publishes, of schema $2 and with name $3 (NULL: any), or with oid $4, and their
-- columns in order, as the catalog has them now.
select
    c.oid,
    n.nspname::text as schema,
    shown.name,
    p.pubinsert,
    p.pubupdate,
    p.pubdelete,
    -- Where another publication of the stream publishes all rows or columns, this one's limits are not kept.
    exists (
        select
        from pg_catalog.pg_publication_tables o
        where o.pubname = any($5) and o.pubname <> p.pubname and o.schemaname = n.nspname and o.tablename = c.relname
    ) and to_jsonb(t) ->> 'rowfilter' is not null as unlimited,
    coalesce(
        (
            select jsonb_agg(jsonb_build_object(
                'name', a.attname,
                'type_oid', a.atttypid::bigint,
                'type_name', y.typname,
                'generated', a.attgenerated <> '',
                'odd', b.typtype = 'c' or (b.typelem <> 0 and b.typnamespace <> 'pg_catalog'::regnamespace)
                    or b.oid <> y.oid
            ) order by a.attnum)
            from pg_catalog.pg_attribute a
            join pg_catalog.pg_type y on y.oid = a.atttypid
            cross join lateral (
                with recursive up as (
                    select y.oid, y.typtype, y.typbasetype, 0 as depth
                    union all
                    select x.oid, x.typtype, x.typbasetype, up.depth + 1
                    from up
                    join pg_catalog.pg_type x on x.oid = up.typbasetype
                    where up.typtype = 'd'
                )
                select up.oid from up order by up.depth desc limit 1
            ) base
            join pg_catalog.pg_type b on b.oid = base.oid
            where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
                and (
                    to_jsonb(t) -> 'attnames' is null
                    or to_jsonb(t) -> 'attnames' = 'null'
                    or to_jsonb(t) -> 'attnames' ? a.attname::text
                    or a.attgenerated <> ''
                )
        ),
        '[]'
    ) as columns
from pg_catalog.pg_publication_tables t
join pg_catalog.pg_publication p on p.pubname = t.pubname
join pg_catalog.pg_namespace n on n.nspname = t.schemaname
join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = t.tablename
-- A table whose rows are those of a view has the name of the view; `src/wal/relation.rs` has the same list.
cross join lateral (
    select case when n.nspname = 'convoke' and c.relname = 'offer_rows' then 'offers' else c.relname::text end as name
) shown
where t.pubname = $1
    and n.nspname not in ('realtime', 'pg_catalog', 'information_schema')
    and ($2::text is null or n.nspname = $2)
    and ($3::text is null or shown.name = $3)
    and ($4::oid is null or c.oid = $4)
order by n.nspname, c.relname
