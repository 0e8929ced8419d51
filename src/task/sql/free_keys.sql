update convoke.tasks t set idempotency_key = null
from unnest($1::text[], $2::text[], $3::text[]) as i(org, requester, key)
where t.org = i.org and t.requester = i.requester and t.idempotency_key = i.key
    and t.state in ('completed', 'failed', 'canceled')
    and t.updated_at < clock_timestamp() - interval '24 hours'
