-- The definitions that agents were registered with, as people may see them: without values that may be secret. A run
-- keeps the body that it works by in convoke.definitions. Only the daemon reads and writes this table.
create table convoke.definition_versions (
    agent_id text not null,
    -- convoke.agents.definition_version at that time.
    version bigint not null,
    hash text not null,
    body json not null,
    applied_at timestamptz not null default clock_timestamp(),
    primary key (agent_id, version)
);

alter table convoke.definition_versions enable row level security;
