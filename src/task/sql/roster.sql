select g.id, g.org, g.capabilities, g.slots, g.slots_used, g.drained_at is not null as drained, g.incarnation, g.terms, s.kind, s.completed, s.failed,
    s.refused, s.late, s.ended_at, s.succeeded_at, s.weight, s.latency_ms_sum, s.cost_microdollars_sum
from convoke.agents g left join convoke.statistics s on s.agent_id = g.id
where g.status = 'present' and ($1::text is null or g.id = $1)
