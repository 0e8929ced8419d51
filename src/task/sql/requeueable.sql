select t.id from convoke.tasks t
where ($1::text is null or t.org = $1) and ($2::text is null or t.requester = $2) and t.state = $3
    and ($4::text is null or t.kind = $4) and ($5::text is null or t.state_reason = $5)
    and ($6::uuid is null or t.id > $6)
order by t.id limit $7
