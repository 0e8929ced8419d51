-- Exact money (docs/spec/thinking-agents.md §6): every question to a model as a row, and what was used by hour. Only the
-- daemon's task store reads and writes these tables, so no role of tokens is granted any right.

-- Questions to models. A row is written before its question is sent, with the most that it may use, and gets what it
-- used with its answer. A question whose usage is not known counts as its most.
create table convoke.model_questions (
    -- Made by the caller, so that a commit whose answer was lost can be repeated.
    id uuid primary key,
    task_id uuid not null references convoke.tasks on delete cascade,
    -- Null for a question about an offer.
    assignment_id uuid,
    agent_id text not null,
    -- The step that asked. Null for a question outside of a run.
    run integer,
    seq integer,
    provider text not null,
    model text not null,
    model_said text,
    -- sent: it may be under way. presumed: it ended, and its usage is not known.
    state text not null check (state in ('sent', 'exact', 'presumed')),
    asked_at timestamptz not null default clock_timestamp(),
    -- When it was first counted in convoke.spend. A correction counts in the same hour.
    ended_at timestamptz,
    tokens bigint not null check (tokens >= 0),
    microdollars bigint not null check (microdollars >= 0),
    -- Parts of the tokens, as the endpoint counted them.
    input_tokens bigint,
    cached_tokens bigint,
    written_tokens bigint,
    output_tokens bigint,
    reasoning_tokens bigint,
    -- The cost that the endpoint named, and the cost by the table of prices.
    named_microdollars bigint,
    priced_microdollars bigint
) with (fillfactor = 70);
create index model_questions_assignment on convoke.model_questions (assignment_id);
create index model_questions_task on convoke.model_questions (task_id);

-- When the charge was first counted in convoke.spend. Null while it is reserved.
alter table convoke.charges add column settled_at timestamptz;
update convoke.charges c set settled_at = coalesce(a.ended_at, c.at)
from convoke.assignments a where a.id = c.assignment_id and c.state <> 'reserved';

-- What was used, by hour. Attempts that used nothing are counted in rows without task; so is what tasks used that
-- retention has deleted (the id is nil then). Usage of other programs and of before has no provider and no model.
create table convoke.spend (
    org text not null,
    hour timestamptz not null,
    agent_id text not null,
    kind text not null,
    task_id uuid not null,
    root_id uuid not null,
    provider text not null,
    model text not null,
    attempts bigint not null default 0,
    questions bigint not null default 0,
    -- Of the questions and reports: those whose usage is presumed.
    presumed bigint not null default 0,
    -- Numeric, so that no sum of reports can overflow.
    tokens numeric not null default 0,
    microdollars numeric not null default 0,
    presumed_microdollars numeric not null default 0,
    input_tokens numeric not null default 0,
    cached_tokens numeric not null default 0,
    written_tokens numeric not null default 0,
    output_tokens numeric not null default 0,
    reasoning_tokens numeric not null default 0,
    primary key (org, hour, agent_id, kind, task_id, provider, model)
) with (fillfactor = 80);
create index spend_task on convoke.spend (task_id);
create index spend_root on convoke.spend (root_id);

-- Assignments that used something and had no budget get a charge, so that the sum of the charges is the whole.
insert into convoke.charges (assignment_id, task_id, root_id, agent_id, at, state, tokens, microdollars, settled_at)
select a.id, a.task_id, t.root_id, a.agent_id, coalesce(a.ended_at, a.awarded_at), 'spent', u.tokens, u.microdollars,
    coalesce(a.ended_at, a.awarded_at)
from convoke.assignments a join convoke.tasks t on t.id = a.task_id
cross join lateral (select
    case when jsonb_typeof(a.outcome -> 'tokens') = 'number'
        then least(greatest(ceil((a.outcome ->> 'tokens')::numeric), 0), 1e15)::bigint else 0 end as tokens,
    case when jsonb_typeof(a.outcome -> 'microdollars') = 'number'
        then least(greatest(ceil((a.outcome ->> 'microdollars')::numeric), 0), 1e15)::bigint else 0 end as microdollars
) u
where u.tokens + u.microdollars > 0
on conflict do nothing;

insert into convoke.spend (org, hour, agent_id, kind, task_id, root_id, provider, model, attempts, presumed, tokens,
    microdollars, presumed_microdollars)
select t.org, date_trunc('hour', coalesce(c.settled_at, a.ended_at), 'UTC'), a.agent_id, t.kind,
    case when c.tokens + c.microdollars > 0 then t.id else '00000000-0000-0000-0000-000000000000'::uuid end,
    case when c.tokens + c.microdollars > 0 then t.root_id else '00000000-0000-0000-0000-000000000000'::uuid end,
    '', '', count(*), count(*) filter (where c.state = 'presumed'), coalesce(sum(c.tokens), 0),
    coalesce(sum(c.microdollars), 0), coalesce(sum(c.microdollars) filter (where c.state = 'presumed'), 0)
from convoke.assignments a join convoke.tasks t on t.id = a.task_id
left join convoke.charges c on c.assignment_id = a.id
where coalesce(c.state, 'spent') <> 'reserved' and coalesce(c.settled_at, a.ended_at) is not null
group by 1, 2, 3, 4, 5, 6;

alter table convoke.model_questions enable row level security;
alter table convoke.spend enable row level security;
create index charges_reserved on convoke.charges (task_id) where state = 'reserved';
