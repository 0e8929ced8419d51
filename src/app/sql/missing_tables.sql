-- The numbers (from 1) of the tables that are not there.
select w.at from unnest($1::text[], $2::text[]) with ordinality as w(schema, name, at)
where not exists (
    select from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where n.nspname = w.schema and c.relname = w.name and c.relkind in ('r', 'p'))
order by w.at
