-- Each ticket of this run with its task, the offers on it, and what came of it.
with task as (
    select distinct on (ticket) (k.input -> 'ticket' ->> 'id')::bigint as ticket,
        k.id, k.state, k.state_reason, k.agent_id, k.round
    from convoke.tasks k
    where k.kind = 'support.triage' and k.created_at >= $1::timestamptz
    order by ticket, k.id desc
)
select t.id, t.subject, t.category, t.urgency, t.reason,
    (extract(epoch from t.triaged_at - t.created_at) * 1000)::float8 as took_ms,
    k.id as task_id, k.state, k.state_reason, coalesce(t.triaged_by, k.agent_id) as agent_id,
    (select string_agg(o.agent_id || case when o.state = 'declined' then ' declined'
                else coalesce(to_char((o.score ->> 'total')::float8 / 1e6, ' FM0.00'), '') end, ', '
            order by (o.score ->> 'total')::bigint desc nulls last, o.agent_id)
        from convoke.offers o where o.task_id = k.id and o.round = k.round) as offers
from public.tickets t left join task k on k.ticket = t.id
order by t.id
