select o.round, o.agent_id, o.state, o.cost_microdollars, o.eta_ms, o.confidence, o.note, o.chosen, o.score,
    o.offered_at, o.valid_until
from convoke.offers o where o.task_id = $1
order by o.round, case when jsonb_typeof(o.score -> 'total') = 'number' then (o.score ->> 'total')::numeric end desc nulls last, o.agent_id
