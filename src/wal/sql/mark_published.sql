-- Writes a mark into the WAL, and returns its position, if one of the publications $1 exists and no two of the
-- publications $2 have different columns of one table; else NULL.
select max(pg_logical_emit_message(true, 'convoke.publications', ''))
  from (select
          from pg_publication
         where pubname = any ($1)
           -- Before version 15 there are no column lists.
           and not exists (select
                             from pg_publication_rel r
                             join pg_publication p on p.oid = r.prpubid
                             join pg_class c on c.oid = r.prrelid
                             join pg_namespace n on n.oid = c.relnamespace
                             join pg_publication_tables t on t.schemaname = n.nspname and t.tablename = c.relname
                            where p.pubname = any ($2)
                              and t.pubname = any ($2)
                              and jsonb_typeof(to_jsonb(r) -> 'prattrs') = 'array'
                              and not exists (select
                                                from pg_publication_rel same
                                                join pg_publication o on o.oid = same.prpubid
                                               where o.pubname = t.pubname
                                                 and same.prrelid = c.oid
                                                 and to_jsonb(same) -> 'prattrs' = to_jsonb(r) -> 'prattrs'))
           -- Before version 18 no publication has generated columns.
           and (select count(distinct to_jsonb(p) -> 'pubgencols') from pg_publication p where p.pubname = any ($2)) <= 1
         limit 1) as found
