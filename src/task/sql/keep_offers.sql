-- Writes a row for each offer in the events of awards of these tasks, so that each can change by itself.
insert into convoke.offer_rows (id, task_id, round, agent_id, incarnation, state, cost_microdollars, eta_ms, confidence,
    valid_until, score, offered_at)
select c.id, c.task_id, c.round, c.agent_id, c.incarnation, c.state, c.cost_microdollars, c.eta_ms, c.confidence,
    c.valid_until, c.score, c.offered_at
from convoke.computed_offers c where c.task_id = any($1)
on conflict do nothing
