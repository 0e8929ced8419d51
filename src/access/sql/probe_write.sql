insert into realtime.messages (topic, extension, inserted_at, updated_at)
select $1, $2, timezone('utc', now()), timezone('utc', now())
 where current_setting('is_superuser') = 'off'
