-- Row changes that are put together: one task after a burst of them, or one pending task for each value of some
-- columns. A row is pending while it has a due time; afterwards it remembers its task, into which further changes
-- go for as long as nobody has taken it.
create table convoke.bursts (
    trigger text not null,
    key text not null,
    agent_id text not null,
    org text not null,
    merges boolean not null,
    changes bigint not null,
    first_at timestamptz not null,
    due_at timestamptz,
    task_id uuid,
    request jsonb,
    error text,
    primary key (trigger, key)
) with (fillfactor = 50);
create index bursts_due on convoke.bursts (due_at) where due_at is not null;
