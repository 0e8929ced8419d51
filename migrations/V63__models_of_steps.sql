-- Failover along the models of an agent (docs/spec/thinking-agents.md §5, A12 and A13): which model each question of a
-- run was sent to, and why those before it in the list could not answer. Null for questions of before, which went to
-- the one model of their agent.
alter table convoke.steps
    add column provider text,
    add column model_asked text,
    add column passed_over text;
