-- What agents that think remember from one task to the next (docs/spec/thinking-agents.md, M1). Values are texts of
-- models, so no role of tokens is granted any right.
create table convoke.memories (
    org text not null,
    -- Empty for what all agents of the org share.
    agent_id text not null,
    key text not null,
    -- json and not jsonb: it may have the character U+0000.
    value json not null,
    bytes integer not null,
    version bigint not null default 1,
    -- The step that wrote it.
    task_id uuid not null,
    run integer not null,
    seq integer not null,
    updated_at timestamptz not null default clock_timestamp(),
    expires_at timestamptz,
    primary key (org, agent_id, key)
);

alter table convoke.memories enable row level security;
