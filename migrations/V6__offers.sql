-- What agents are worth by their outcomes, what was offered with an award, and what tasks may cost.

alter table convoke.statistics
    -- Finished, but after more than twice the offered time and a second.
    add column late bigint not null default 0,
    -- By the confidence of the winning offer, in tenths: how many attempts ended, how many of them well.
    add column ended_at bigint[] not null default array_fill(0::bigint, array[10]),
    add column succeeded_at bigint[] not null default array_fill(0::bigint, array[10]);

alter table convoke.assignments
    add column cost_microdollars bigint not null default 0,
    add column eta_ms bigint not null default 0,
    add column confidence real not null default 0;

-- The requester chose this offer.
alter table convoke.offers add column chosen boolean not null default false;

-- How many of these tenths there are, from 0 to 9.
create function convoke.tenths(tenths integer[]) returns bigint[] language sql immutable as $$
    select array(select count(t.tenth) from generate_series(0, 9) as of(tenth)
        left join unnest(tenths) as t(tenth) on t.tenth = of.tenth group by of.tenth order by of.tenth)
$$;

-- Two lists, added place by place.
create function convoke.added(a bigint[], b bigint[]) returns bigint[] language sql immutable as $$
    select array_agg(coalesce(x, 0) + coalesce(y, 0) order by place)
    from unnest(a, b) with ordinality as u(x, y, place)
$$;

-- What a task, or the whole tree under a root, may use. A task without a row has no limit.
create table convoke.budgets (
    task_id uuid not null references convoke.tasks on delete cascade,
    -- Whether it is of the whole tree under this task.
    tree boolean not null,
    tokens_max bigint check (tokens_max >= 0),
    tokens_reserved bigint not null default 0 check (tokens_reserved >= 0),
    tokens_spent bigint not null default 0 check (tokens_spent >= 0),
    microdollars_max bigint check (microdollars_max >= 0),
    microdollars_reserved bigint not null default 0 check (microdollars_reserved >= 0),
    microdollars_spent bigint not null default 0 check (microdollars_spent >= 0),
    -- What was reported as used beyond what had been reserved and was left.
    tokens_over bigint not null default 0,
    microdollars_over bigint not null default 0,
    primary key (task_id, tree),
    check (tokens_reserved + tokens_spent <= coalesce(tokens_max, 9223372036854775807)),
    check (microdollars_reserved + microdollars_spent <= coalesce(microdollars_max, 9223372036854775807))
) with (fillfactor = 50);

-- What was reserved for an assignment and what it used: of tasks with a budget, and of agents with a limit.
create table convoke.charges (
    assignment_id uuid not null,
    task_id uuid not null references convoke.tasks on delete cascade,
    root_id uuid not null,
    agent_id text not null,
    at timestamptz not null default clock_timestamp(),
    -- reserved: its call may be under way. presumed: it ended without a word and counts as spent.
    state text not null check (state in ('reserved', 'presumed', 'spent')),
    tokens bigint not null check (tokens >= 0),
    microdollars bigint not null check (microdollars >= 0),
    primary key (assignment_id)
) with (fillfactor = 70);
create index charges_agent on convoke.charges (agent_id, at);
create index charges_task on convoke.charges (task_id);
