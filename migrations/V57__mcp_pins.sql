-- What MCP servers said about their tools when it was accepted (docs/spec/mcp.md, Z6): a tool that changes is not
-- offered to a model until an operator accepts the change. The texts are bytes of JSON: they are from strangers, and
-- may have characters that the database's encoding lacks.
create table convoke.mcp_pins (
    agent_id text not null,
    server text not null,
    tool text not null,
    sha256 text not null,
    body bytea not null,
    accepted_at timestamptz not null default clock_timestamp(),
    -- What the server says now, if it is something else.
    seen_sha256 text,
    seen_body bytea,
    seen_at timestamptz,
    primary key (agent_id, server, tool)
);

alter table convoke.mcp_pins enable row level security;
