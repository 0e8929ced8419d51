-- A fresh message without a position has not come through the WAL yet. An older one without a position was sent
-- before the daemon recorded positions.
select id::text, event, payload, bytes, position, fresh
  from (select m.id, m.event, m.payload::text, decode(substr(to_jsonb(m) ->> 'binary_payload', 3), 'hex') as bytes,
               m.inserted_at, o.commit_lsn, o.index, o.commit_lsn::text || ':' || o.index as position,
               m.inserted_at > timezone('utc', now()) - interval '10 seconds' as fresh
          from realtime.messages m
          left join convoke.message o on o.topic = m.topic and o.id = m.id and o.inserted_at = m.inserted_at
         where m.topic = $1
           and m.private
           and m.extension = 'broadcast'
           and m.event is not null
           and m.inserted_at >= $2
           and m.inserted_at < timezone('utc', now()) + interval '1 minute'
         order by m.inserted_at desc, o.commit_lsn desc nulls last, o.index desc
         limit $3) as newest
 order by commit_lsn nulls first, index, inserted_at
