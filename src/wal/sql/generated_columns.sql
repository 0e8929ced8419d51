-- Whether one of the publications $2 publishes generated columns, if that is not what publication $1 does. No row before
-- version 18, which has no such setting.
select beside.are_published
  from pg_publication ours,
       lateral (select bool_or(to_jsonb(p) ->> 'pubgencols' = 's')
                  from pg_publication p
                 where p.pubname = any ($2)) as beside (are_published)
 where ours.pubname = $1
   and (to_jsonb(ours) ->> 'pubgencols' = 's') <> beside.are_published
