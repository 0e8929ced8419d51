insert into realtime.messages (id, topic, extension, inserted_at, updated_at)
select id, $1, extension, timezone('utc', now()), timezone('utc', now())
  from unnest($2::uuid[], $3::text[]) as probe (id, extension)
