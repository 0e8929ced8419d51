-- The columns of the named tables as the WAL describes them; a table without columns gives one row.
select n.nspname::text, c.relname::text, c.oid, c.relreplident, a.attname::text, a.atttypid, t.typname::text,
       c.relreplident = 'f' or i.indrelid is not null as is_key
from unnest($1::text[], $2::text[]) as wanted(schema, name)
join pg_namespace n on n.nspname = wanted.schema
join pg_class c on c.relnamespace = n.oid and c.relname = wanted.name and c.relkind in ('r', 'p')
left join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''
left join pg_type t on t.oid = a.atttypid
left join pg_index i on i.indrelid = c.oid and a.attnum = any (i.indkey)
    and (c.relreplident = 'd' and i.indisprimary or c.relreplident = 'i' and i.indisreplident)
order by n.nspname, c.relname, a.attnum
