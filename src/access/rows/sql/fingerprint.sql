-- Its first column changes if the catalog rows on which plans for tables $1, functions $2 and roles $3 depend may have changed. The second is
-- the snapshot.
with recursive held (oid) as (
    select r.oid from pg_catalog.pg_roles r where r.rolname = any($3)
    union
    select m.roleid from pg_catalog.pg_auth_members m join held h on m.member = h.oid
)
select pg_catalog.concat_ws(
    ' ',
    (
        select pg_catalog.concat(count(*), ':', sum(pg_catalog.hashtextextended(pg_catalog.concat(p.oid, '.', p.xmin), 0)))
        from pg_catalog.pg_policy p
        where p.polrelid = any($1)
    ),
    (
        select pg_catalog.concat(count(*), ':', sum(pg_catalog.hashtextextended(pg_catalog.concat(n.oid, '.', n.xmin), 0)))
        from pg_catalog.pg_namespace n
        where n.oid in (select c.relnamespace from pg_catalog.pg_class c where c.oid = any($1))
    ),
    (
        select pg_catalog.concat(count(*), ':', sum(pg_catalog.hashtextextended(pg_catalog.concat(m.roleid, '.', m.member, '.', m.xmin), 0)))
        from pg_catalog.pg_auth_members m
        where m.member in (select h.oid from held h)
    ),
    (
        select pg_catalog.concat(count(*), ':', sum(pg_catalog.hashtextextended(
            pg_catalog.concat(r.oid, '.', r.rolname, '.', r.rolsuper, '.', r.rolbypassrls, '.', r.rolinherit), 0)))
        from pg_catalog.pg_roles r
        where r.oid in (select h.oid from held h)
    ),
    (
        select pg_catalog.concat(count(*), ':', sum(pg_catalog.hashtextextended(pg_catalog.concat(c.oid, '.', c.xmin), 0)))
        from pg_catalog.pg_class c
        where c.oid = any($1)
    ),
    (
        select pg_catalog.concat(count(*), ':', sum(pg_catalog.hashtextextended(pg_catalog.concat(a.attrelid, '.', a.attnum, '.', a.xmin), 0)))
        from pg_catalog.pg_attribute a
        where a.attrelid = any($1)
    ),
    (
        select pg_catalog.concat(count(*), ':', sum(pg_catalog.hashtextextended(pg_catalog.concat(d.oid, '.', d.xmin), 0)))
        from pg_catalog.pg_attrdef d
        where d.adrelid = any($1)
    ),
    (
        select pg_catalog.concat(count(*), ':', sum(pg_catalog.hashtextextended(pg_catalog.concat(i.inhrelid, '.', i.inhparent, '.', i.xmin), 0)))
        from pg_catalog.pg_inherits i
        where i.inhrelid = any($1)
    ),
    (
        select pg_catalog.concat(count(*), ':', sum(pg_catalog.hashtextextended(pg_catalog.concat(i.indexrelid, '.', i.xmin), 0)))
        from pg_catalog.pg_index i
        where i.indrelid = any($1)
    ),
    (
        select pg_catalog.concat(count(*), ':', sum(pg_catalog.hashtextextended(pg_catalog.concat(p.oid, '.', p.xmin), 0)))
        from pg_catalog.pg_proc p
        where p.oid = any($2)
    ),
    -- The owner of the database is implicitly a member of pg_database_owner.
    (select d.datdba from pg_catalog.pg_database d where d.datname = pg_catalog.current_database()),
    (
        select pg_catalog.concat(count(*), ':', sum(pg_catalog.hashtextextended(pg_catalog.concat(p.oid, '.', p.xmin), 0)))
        from pg_catalog.pg_publication p
    ),
    (
        select pg_catalog.concat(count(*), ':', sum(pg_catalog.hashtextextended(pg_catalog.concat(r.oid, '.', r.xmin), 0)))
        from pg_catalog.pg_publication_rel r
        where r.prrelid = any($1)
    ),
    (
        select pg_catalog.concat(count(*), ':', sum(pg_catalog.hashtextextended(pg_catalog.concat(s.oid, '.', s.xmin), 0)))
        from pg_catalog.pg_publication_namespace s
    )
),
pg_catalog.pg_current_snapshot()::text
