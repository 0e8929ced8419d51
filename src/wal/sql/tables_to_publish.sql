select wanted.schema_name,
       wanted.table_name,
       c.oid is not null,
       c.relkind = 'p'
         or c.relreplident in ('f', 'i')
         or (c.relreplident = 'd' and exists (select from pg_index i where i.indrelid = c.oid and i.indisprimary))
  from unnest($1::text[], $2::text[]) as wanted (schema_name, table_name)
  left join pg_namespace n on n.nspname = wanted.schema_name
  left join pg_class c on c.relnamespace = n.oid
                      and c.relname = wanted.table_name
                      and c.relkind in ('r', 'p')
