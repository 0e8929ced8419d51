select o.round, o.agent_id, o.state, o.cost_microdollars, o.eta_ms, o.confidence, o.note, o.chosen, o.score
from convoke.offers o where o.task_id = $1
order by o.round, (o.score ->> 'total')::bigint desc nulls last, o.agent_id
