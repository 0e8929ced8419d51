insert into convoke.offer_rows as o (task_id, round, agent_id, incarnation, state, cost_microdollars, eta_ms,
    confidence, note, valid_until, score)
select i.task_id, i.round, i.agent_id, i.incarnation, i.state, i.cost, i.eta_ms, i.confidence, i.note,
    clock_timestamp() + i.valid_ms * interval '1 ms', i.score
from unnest($1::uuid[], $2::integer[], $3::text[], $4::bigint[], $5::text[], $6::bigint[], $7::bigint[],
    $8::real[], $9::text[], $10::bigint[], $11::jsonb[])
    as i(task_id, round, agent_id, incarnation, state, cost, eta_ms, confidence, note, valid_ms, score)
-- A score is added to a standing offer and leaves the rest as it was. A withdrawal keeps the figures too.
on conflict (task_id, round, agent_id) do update set incarnation = excluded.incarnation,
    state = case when excluded.state = 'declined' and o.state <> 'declined' then 'withdrawn' else excluded.state end,
    cost_microdollars = case when excluded.state = 'declined' then o.cost_microdollars
        else excluded.cost_microdollars end,
    eta_ms = case when excluded.state = 'declined' then o.eta_ms else excluded.eta_ms end,
    confidence = case when excluded.state = 'declined' then o.confidence else excluded.confidence end,
    score = excluded.score,
    note = case when excluded.score is null then excluded.note else o.note end,
    valid_until = case when excluded.score is null then excluded.valid_until else o.valid_until end,
    offered_at = case when excluded.score is null then clock_timestamp() else o.offered_at end,
    chosen = o.chosen and excluded.score is not null
where o.state in ('open', 'declined', 'withdrawn') and excluded.state <> 'late'
