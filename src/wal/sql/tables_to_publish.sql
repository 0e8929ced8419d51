-- The tables $1, $2 that publication $3 shall name: whether they are there, published already, and can be published.
-- $4: the other publications of the same stream.
select wanted.schema_name,
       wanted.table_name,
       c.oid,
       exists (select from pg_publication p
                where p.pubname = $3
                  and (p.puballtables
                       or exists (select from pg_publication_rel r where r.prpubid = p.oid and r.prrelid = c.oid)))
         as published,
       pg_has_role(c.relowner, 'usage') as owned,
       pg_get_userbyid(c.relowner)::text as owner,
       current_user::text as role,
       bare.schema as bare_schema,
       bare.name as bare_name,
       part.publication as part_publication,
       part.name as part_name,
       part.is_above as part_is_above,
       part.has_wanted as part_has_wanted,
       -- Ours has no column list. Postgres takes a list of all columns for another list in some versions.
       (select min(p.pubname)::text
          from pg_publication_rel r
          join pg_publication p on p.oid = r.prpubid
         where p.pubname = any ($4)
           and r.prrelid = c.oid
           and jsonb_typeof(to_jsonb(r) -> 'prattrs') = 'array') as other_columns
  from unnest($1::text[], $2::text[]) as wanted (schema_name, table_name)
  left join pg_namespace n on n.nspname = wanted.schema_name
  left join pg_class c on c.relnamespace = n.oid
                      and c.relname = wanted.table_name
                      and c.relkind in ('r', 'p')
  -- Postgres refuses updates and deletes of a published table, or partition, without a replica identity.
  left join lateral (select ln.nspname::text as schema, l.relname::text as name
                       from pg_class l
                       join pg_namespace ln on ln.oid = l.relnamespace
                      where (l.oid = c.oid and c.relkind = 'r'
                             or c.relkind = 'p'
                                and l.oid in (select p.relid from pg_partition_tree(c.oid) p where p.isleaf))
                        and l.relkind = 'r'
                        and l.relreplident <> 'f'
                        and not exists (select from pg_index i
                                         where i.indrelid = l.oid
                                           and i.indimmediate
                                           and (l.relreplident = 'd' and i.indisprimary
                                                or l.relreplident = 'i' and i.indisreplident))
                      order by l.oid
                      limit 1) as bare on true
  -- A stream has each change of a partition once, under the highest name of all its publications: a table of the same
  -- partition tree that another publication has, or another wake (publication: NULL), takes this one's changes or
  -- loses its own. Clients get no rows of schema realtime, so they lose nothing of it.
  left join lateral (select p.pubname::text as publication,
                            format('%I.%I', rn.nspname, r.relname) as name,
                            t.relid in (select pg_partition_ancestors(c.oid)) as is_above,
                            coalesce(p.puballtables, false)
                              or exists (select from pg_publication_rel own
                                          where own.prpubid = p.oid and own.prrelid = c.oid) as has_wanted
                       from (select p.oid, t.relid
                               from pg_publication p, pg_get_publication_tables(p.pubname::text) t
                              where p.pubname = any ($4)
                             union all
                             select null, a.oid
                               from unnest($1::text[], $2::text[]) as w (schema_name, table_name)
                               join pg_namespace an on an.nspname = w.schema_name
                               join pg_class a on a.relnamespace = an.oid and a.relname = w.table_name
                              where a.oid in (select pg_partition_ancestors(c.oid))) as t
                       left join pg_publication p on p.oid = t.oid
                       join pg_class r on r.oid = t.relid
                       join pg_namespace rn on rn.oid = r.relnamespace
                      where (c.relkind = 'p' or c.relispartition)
                        and t.relid <> c.oid
                        and rn.nspname <> 'realtime'
                        and (t.relid in (select pg_partition_ancestors(c.oid))
                             or t.relid in (select tree.relid from pg_partition_tree(c.oid) as tree))
                      order by p.pubname, t.relid
                      limit 1) as part on true
 order by wanted.schema_name, wanted.table_name
