-- Tasks that depend on others, that are parts of others, that wait for somebody, that are verified,
-- and that a clock requests; what observers may read of all tasks.

alter table convoke.tasks
    -- Whether it goes on when its parent is canceled.
    add column detached boolean not null default false,
    -- Whether it runs although something that it depends on has failed.
    add column run_anyway boolean not null default false,
    -- Whether others depend on it that have not been told of its end.
    add column followed boolean not null default false,
    -- Whether it has parts that are to be canceled with it.
    add column has_children boolean not null default false,
    -- What is waited for: {for, question, agent_id, asked_at}.
    add column question jsonb,
    -- What was answered so far: [{question, answer, by, at}].
    add column answers jsonb,
    -- Who is asked first in the next round: it was answered, or its result was rejected.
    add column prefer text,
    -- Why the last result was rejected.
    add column rejected text,
    -- The task that looks at its result.
    add column verifier_id uuid;

create index tasks_depending on convoke.tasks using gin (depends_on) where state = 'blocked';
create index tasks_followed on convoke.tasks (id)
    where followed and state in ('completed', 'failed', 'canceled');
create index tasks_cascading on convoke.tasks (id)
    where has_children and state in ('canceling', 'failed', 'canceled');

alter table convoke.assignments
    -- Confirmed, and to be started by start_by.
    add column start_by timestamptz,
    -- Since when it holds neither slot nor lease.
    add column waiting_since timestamptz,
    -- When it was told that it shows no work.
    add column nudged_at timestamptz,
    -- When the last progress went into the event log.
    add column logged_at timestamptz;

-- Firings of a schedule: every one before fired_at has been decided about.
create table convoke.schedules (
    trigger text primary key,
    agent_id text not null,
    org text not null,
    cron text not null,
    fired_at timestamptz not null default clock_timestamp(),
    task_id uuid
);

-- What the daemon's settings say, for those who request with SQL.
create table convoke.task_defaults (
    only_row boolean primary key default true check (only_row),
    attempts_max integer not null default 3 check (attempts_max between 1 and 9999)
);
insert into convoke.task_defaults default values;
