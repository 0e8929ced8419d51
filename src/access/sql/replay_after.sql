select m.id::text, m.event, m.payload::text, decode(substr(to_jsonb(m) ->> 'binary_payload', 3), 'hex'),
       o.commit_lsn::text || ':' || o.index
  from convoke.message o
  join realtime.messages m on m.id = o.id and m.inserted_at = o.inserted_at
 where o.topic = $1
   and (o.commit_lsn, o.index) > ($2::text::pg_lsn, $3)
   and m.private
   and m.extension = 'broadcast'
   and m.event is not null
 order by o.commit_lsn, o.index
 limit $4
