-- Runs of agents that think: every question to a model, every call of a tool and every note is a row
-- (docs/spec/thinking-agents.md). Only the daemon's task store reads and writes these tables: they contain prompts
-- and results, so no role of tokens is granted any right.

-- Definitions that runs were begun with. Secrets are in it by the names of their variables only.
create table convoke.definitions (
    agent_id text not null,
    hash text not null,
    body json not null,
    loaded_at timestamptz not null default clock_timestamp(),
    primary key (agent_id, hash)
);

create table convoke.runs (
    task_id uuid not null references convoke.tasks on delete cascade,
    run integer not null check (run >= 1),
    agent_id text not null,
    definition_hash text not null,
    model text not null,
    -- The number of the last step: two writers cannot both append.
    head_seq integer not null default 0,
    tokens bigint not null default 0,
    microdollars bigint not null default 0,
    -- How it ended (finish, give_up, steps, loop, …), and the assignment that ended it. A rejected result revives it.
    ended_as text,
    ended_by uuid,
    started_at timestamptz not null default clock_timestamp(),
    ended_at timestamptz,
    primary key (task_id, run)
) with (fillfactor = 70);

create table convoke.steps (
    task_id uuid not null,
    run integer not null,
    seq integer not null check (seq >= 1),
    kind text not null check (kind in ('note', 'model', 'tool')),
    state text not null check (state in ('planned', 'started', 'done', 'failed', 'skipped', 'unknown')),
    -- Who began it, or ended it.
    assignment_id uuid not null,
    epoch bigint not null,
    tries integer not null default 0,
    began_at timestamptz,
    ended_at timestamptz,
    -- A note, and why it was put in.
    note_kind text,
    note text,
    -- A question to a model.
    request_sha256 text,
    last boolean not null default false,
    model_said text,
    finish text,
    ending text,
    tokens bigint,
    microdollars bigint,
    presumed boolean,
    -- json and not jsonb: the next question must have the same bytes.
    answer json,
    -- A call of a tool.
    after_seq integer,
    place integer,
    wire_id text,
    name text,
    args json,
    args_sha256 text,
    effect text check (effect in ('read', 'database', 'keyed', 'once')),
    key text,
    result text,
    bytes bigint,
    cut boolean,
    -- How many answers the task had when a person was asked about it.
    asked_after integer,
    primary key (task_id, run, seq),
    foreign key (task_id, run) references convoke.runs on delete cascade
) with (fillfactor = 70);

alter table convoke.definitions enable row level security;
alter table convoke.runs enable row level security;
alter table convoke.steps enable row level security;
