-- The first column changes if the catalog rows on which plans for tables $1, functions $2 and roles $3 depend may have changed. Rows are
-- compared by the transactions that wrote them: a row that was written since the last check has one that no row had before. pg_roles shows
-- none, so roles are compared by their columns. $4 is the roles with the roles that they are members of, directly or not; where they are not
-- known, held_roles.sql replaces it. They are the second column. The third is the snapshot.
with written (xmin) as (
    select p.xmin from pg_catalog.pg_policy p where p.polrelid = any($1)
    union all
    select n.xmin from pg_catalog.pg_namespace n
    where n.oid = any(array(select c.relnamespace from pg_catalog.pg_class c where c.oid = any($1)))
    union all
    select m.xmin from pg_catalog.pg_auth_members m where m.member = any($4::oid[])
    union all
    select c.xmin from pg_catalog.pg_class c where c.oid = any($1)
    union all
    select a.xmin from pg_catalog.pg_attribute a where a.attrelid = any($1)
    union all
    select d.xmin from pg_catalog.pg_attrdef d where d.adrelid = any($1)
    union all
    select i.xmin from pg_catalog.pg_inherits i where i.inhrelid = any($1)
    union all
    select i.xmin from pg_catalog.pg_index i where i.indrelid = any($1)
    union all
    select p.xmin from pg_catalog.pg_proc p where p.oid = any($2)
    union all
    -- The owner of the database is implicitly a member of pg_database_owner.
    select d.xmin from pg_catalog.pg_database d where d.datname = pg_catalog.current_database()
    union all
    select p.xmin from pg_catalog.pg_publication p
    union all
    select r.xmin from pg_catalog.pg_publication_rel r where r.prrelid = any($1)
    union all
    select s.xmin from pg_catalog.pg_publication_namespace s
)
select
    pg_catalog.concat_ws(
        ' ',
        (select pg_catalog.concat(count(*), ':', sum(pg_catalog.hashtextextended(w.xmin::text, 0))) from written w),
        (
            select pg_catalog.concat(count(*), ':', sum(pg_catalog.hashtextextended(
                pg_catalog.concat(r.oid, '.', r.rolname, '.', r.rolsuper, '.', r.rolbypassrls, '.', r.rolinherit), 0)))
            from pg_catalog.pg_roles r
            where r.oid = any($4::oid[]) or r.rolname = any($3)
        )
    ),
    $4::oid[],
    pg_catalog.pg_current_snapshot()::text
