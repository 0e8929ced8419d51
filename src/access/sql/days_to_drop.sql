select format('drop table realtime.%I', c.relname)
  from pg_inherits i
  join pg_class c on c.oid = i.inhrelid
  join pg_namespace n on n.oid = c.relnamespace
 where i.inhparent = to_regclass('realtime.messages')
   and n.nspname = 'realtime'
   and obj_description(n.oid, 'pg_namespace') = 'made by convoke'
   and c.relname ~ '^messages_\d{4}_\d\d_\d\d$'
   and to_date(substr(c.relname, 10), 'YYYY_MM_DD') + interval '1 day'
       <= timezone('utc', now()) - make_interval(secs => $1)
 union all
select format('delete from realtime.messages_default where inserted_at < %L', timezone('utc', now()) - make_interval(secs => $1))
  from pg_namespace n
 where n.nspname = 'realtime'
   and obj_description(n.oid, 'pg_namespace') = 'made by convoke'
   and to_regclass('realtime.messages_default') is not null
