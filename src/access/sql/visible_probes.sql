select id
  from realtime.messages
 where id = any($1)
   and inserted_at = timezone('utc', now())
   and current_setting('is_superuser') = 'off'
