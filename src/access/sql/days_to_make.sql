select format('create table realtime.%I partition of realtime.messages for values from (%L) to (%L)',
              'messages_' || to_char(day, 'YYYY_MM_DD'), day, day + interval '1 day')
  from generate_series(date_trunc('day', timezone('utc', now())) - interval '1 day',
                       date_trunc('day', timezone('utc', now())) + interval '3 days',
                       interval '1 day') as day
 where to_regclass('realtime.' || 'messages_' || to_char(day, 'YYYY_MM_DD')) is null
   and exists (select from pg_class c
                where c.oid = to_regclass('realtime.messages')
                  and c.relkind = 'p'
                  and pg_has_role(c.relowner, 'usage'))
   and has_schema_privilege('realtime', 'create')
