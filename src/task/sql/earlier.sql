select t.id, t.request_hash from convoke.tasks t
where t.id = $1 or (t.org = $2 and t.requester = $3 and t.idempotency_key = $4)
order by t.id = $1 desc limit 1
