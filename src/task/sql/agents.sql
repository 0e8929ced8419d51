select g.id, g.org, g.kind, g.description, g.capabilities, g.slots, g.slots_used, g.status, g.incarnation, g.drained_at, g.drained_by,
    g.last_seen_at, coalesce((
        select jsonb_object_agg(s.kind, jsonb_build_object('completed', s.completed, 'failed', s.failed,
            'refused', s.refused, 'late', s.late, 'ended_at', s.ended_at, 'succeeded_at', s.succeeded_at,
            'weight', s.weight, 'latency_ms_sum', s.latency_ms_sum, 'cost_microdollars_sum', s.cost_microdollars_sum))
        from convoke.statistics s where s.agent_id = g.id), '{}') as statistics
from convoke.agents g
where ($1::text is null or g.org = $1) and ($2::text is null or g.id = $2)
order by g.id
