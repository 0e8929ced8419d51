select exists (select from pg_class c
                where c.oid = to_regclass('realtime.messages')
                  and c.relkind = 'p'
                  and pg_has_role(c.relowner, 'usage'))
