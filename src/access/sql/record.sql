insert into convoke.message (commit_lsn, index, topic, id, inserted_at)
select commit_lsn::pg_lsn, index, topic, id, inserted_at::timestamp
  from unnest($1::text[], $2::integer[], $3::text[], $4::uuid[], $5::text[])
    as said (commit_lsn, index, topic, id, inserted_at)
on conflict do nothing
