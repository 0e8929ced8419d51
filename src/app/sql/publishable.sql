-- Whether realtime.messages is ours to publish, and whether the clients' publication exists.
select exists (select from pg_class c
                where c.oid = to_regclass('realtime.messages')
                  and c.relkind = 'p'
                  and pg_has_role(c.relowner, 'usage')),
       exists (select from pg_publication where pubname = $1)
