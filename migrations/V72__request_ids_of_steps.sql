-- The id of a request at its endpoint, for which the support of a provider asks (docs/spec/thinking-agents.md, W26).
alter table convoke.steps add column request_id text;
