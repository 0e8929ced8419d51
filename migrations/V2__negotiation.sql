-- The rows of the negotiation. Only the daemon's task store writes them;
-- everyone else requests with convoke.request_task() and reads.

create table convoke.agents (
    id text primary key,
    org text not null,
    kind text not null,
    description text not null default '',
    capabilities text[] not null default '{}',
    slots integer not null check (slots >= 1),
    slots_used integer not null default 0 check (slots_used >= 0),
    definition_hash text not null default '',
    definition_version bigint not null default 1,
    terms jsonb not null default '{}',
    incarnation bigint not null default 1,
    node_id uuid,
    status text not null default 'present' check (status in ('present', 'gone')),
    last_seen_at timestamptz not null default clock_timestamp()
) with (fillfactor = 50);

-- What an agent did with each kind of task. The sums fade, so that the averages follow the present.
create table convoke.statistics (
    agent_id text not null references convoke.agents on delete cascade,
    kind text not null,
    completed bigint not null default 0,
    failed bigint not null default 0,
    refused bigint not null default 0,
    weight double precision not null default 0,
    latency_ms_sum double precision not null default 0,
    cost_microdollars_sum double precision not null default 0,
    primary key (agent_id, kind)
) with (fillfactor = 50);

create table convoke.tasks (
    id uuid primary key,
    org text not null,
    kind text not null,
    requires text[] not null default '{}',
    -- Tasks of one class have the same eligible agents.
    class bigint not null,
    input jsonb not null default 'null',
    requester text not null,
    parent_id uuid,
    root_id uuid not null,
    depends_on uuid[] not null default '{}',
    idempotency_key text,
    request_hash bytea,
    priority smallint not null default 0,
    state text not null check (state in ('blocked', 'scheduled', 'open', 'awarded', 'running', 'verifying',
        'waiting', 'canceling', 'completed', 'failed', 'canceled')),
    state_reason text,
    round integer not null default 0,
    rounds_empty integer not null default 0,
    epoch bigint not null default 0,
    run_at timestamptz,
    -- Set while a round collects offers, or while its standby offers are asked.
    bids_close_at timestamptz,
    deadline_at timestamptz,
    -- When the arbiter must look at it by itself; null when final, and when open and ready to be announced.
    due_at timestamptz,
    policy jsonb not null default '{}',
    budget jsonb,
    attempt integer not null default 0,
    attempts_max integer not null default 3,
    -- Who tried and failed: asked again only when nobody else is left.
    tried text[] not null default '{}',
    agent_id text,
    result jsonb,
    error jsonb,
    cancel_requested_at timestamptz,
    created_at timestamptz not null default clock_timestamp(),
    updated_at timestamptz not null default clock_timestamp(),
    version bigint not null default 1
) with (fillfactor = 70);

create unique index tasks_idempotency on convoke.tasks (org, requester, idempotency_key)
    where idempotency_key is not null;
create index tasks_ready on convoke.tasks (class, priority desc, id) where state = 'open' and due_at is null;
create index tasks_due on convoke.tasks (due_at) where due_at is not null;
create index tasks_deadline on convoke.tasks (deadline_at)
    where deadline_at is not null and state not in ('completed', 'failed', 'canceled');
create index tasks_parent on convoke.tasks (parent_id) where parent_id is not null;
create index tasks_unfinished on convoke.tasks (state, id) where state <> 'completed';

create table convoke.offers (
    id uuid not null default gen_random_uuid(),
    task_id uuid not null references convoke.tasks on delete cascade,
    round integer not null,
    agent_id text not null,
    incarnation bigint not null,
    state text not null check (state in ('open', 'awarded', 'confirmed', 'refused', 'withdrawn', 'expired',
        'late', 'lost', 'declined')),
    cost_microdollars bigint not null default 0,
    eta_ms bigint not null default 0,
    confidence real not null default 0,
    note text,
    valid_until timestamptz not null,
    score jsonb,
    offered_at timestamptz not null default clock_timestamp(),
    primary key (task_id, round, agent_id)
) with (fillfactor = 80);

create table convoke.assignments (
    id uuid primary key,
    task_id uuid not null references convoke.tasks on delete cascade,
    epoch bigint not null,
    agent_id text not null,
    incarnation bigint not null,
    node_id uuid,
    state text not null check (state in ('awarded', 'running', 'waiting', 'finished', 'refused',
        'confirm_timeout', 'start_timeout', 'lease_lost', 'stalled', 'released', 'canceled', 'failed', 'rejected')),
    awarded_at timestamptz not null default clock_timestamp(),
    confirm_by timestamptz not null,
    started_at timestamptz,
    lease_ms bigint not null default 30000,
    lease_until timestamptz,
    progress_at timestamptz,
    progress real,
    activity text,
    attempt_deadline_at timestamptz,
    checkpoint jsonb,
    outcome jsonb,
    ended_at timestamptz
) with (fillfactor = 70);

-- At most one live assignment a task.
create unique index assignments_live on convoke.assignments (task_id)
    where state in ('awarded', 'running', 'waiting');
create index assignments_task on convoke.assignments (task_id);

create table convoke.events (
    seq bigint generated always as identity primary key,
    at timestamptz not null default clock_timestamp(),
    org text not null,
    task_id uuid,
    agent_id text,
    epoch bigint,
    type text not null,
    body jsonb not null default '{}'
);
create index events_task on convoke.events (task_id, seq);

create function convoke.refuse_change() returns trigger language plpgsql as $$
begin
    if current_setting('convoke.retention', true) = 'on' then
        return old;
    end if;
    raise exception 'convoke.events is append-only';
end $$;
create trigger events_append_only before update or delete on convoke.events
    for each row execute function convoke.refuse_change();

-- What a row change already started: exactly one task a change, however often it is replayed.
create table convoke.wakes (
    trigger text not null,
    agent_id text not null,
    lsn pg_lsn not null,
    index integer not null,
    task_id uuid,
    error text,
    at timestamptz not null default clock_timestamp(),
    primary key (trigger, lsn, index)
);

-- Time-ordered uuids (RFC 9562, version 7).
create function convoke.uuid_v7() returns uuid language sql volatile as $$
    select encode(
        set_bit(set_bit(
            overlay(uuid_send(gen_random_uuid())
                placing substring(int8send((extract(epoch from clock_timestamp()) * 1000)::bigint) from 3)
                from 1 for 6),
            52, 1), 53, 1),
        'hex')::uuid
$$;

-- Tasks of one org that need the same capabilities are of one class, in whatever order they name them.
create function convoke.task_class(org text, requires text[]) returns bigint language sql immutable as $$
    select hashtextextended(org || E'\n' || coalesce((
        select string_agg(r, E'\n' order by r collate "C") from (select distinct unnest(requires) as r) as named), ''), 0)
$$;

-- Requests a task inside the caller's own transaction: committed with it, or not at all.
-- The commit itself wakes the daemon: the message travels in the write-ahead log.
create function convoke.request_task(
    kind text,
    input jsonb default 'null',
    requires text[] default '{}',
    org text default 'default',
    idempotency_key text default null,
    priority integer default 0,
    run_at timestamptz default null,
    deadline timestamptz default null,
    policy jsonb default '{}',
    parent_id uuid default null
) returns uuid language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    made uuid := convoke.uuid_v7();
    asker text := 'sql:' || session_user;
    body_hash bytea;
    earlier record;
    later boolean := coalesce(request_task.run_at > clock_timestamp(), false);
begin
    if coalesce(length(request_task.kind), 0) not between 1 and 200 then
        raise exception 'kind has 1 to 200 characters' using errcode = 'invalid_parameter_value';
    end if;
    if coalesce(request_task.org, '') !~ '^[a-z0-9][a-z0-9_-]{0,62}$' then
        raise exception 'org % is not a name of a-z, 0-9, - and _', quote_nullable(request_task.org)
            using errcode = 'invalid_parameter_value';
    end if;
    if coalesce(request_task.priority, 0) not between -32768 and 32767 then
        raise exception 'priority % is not between -32768 and 32767', request_task.priority
            using errcode = 'invalid_parameter_value';
    end if;
    if octet_length(coalesce(request_task.input, 'null')::text) > 1048576 then
        raise exception 'input is larger than 1048576 bytes' using errcode = 'program_limit_exceeded';
    end if;
    if jsonb_typeof(request_task.policy) is distinct from 'object' then
        raise exception 'policy is not a JSON object' using errcode = 'invalid_parameter_value';
    end if;
    if coalesce(request_task.policy ->> 'attempts_max', '3') !~ '^[1-9][0-9]{0,3}$' then
        raise exception 'policy.attempts_max is not a number from 1 to 9999'
            using errcode = 'invalid_parameter_value';
    end if;
    if array_position(request_task.requires, null) is not null then
        raise exception 'requires has a null' using errcode = 'invalid_parameter_value';
    end if;
    body_hash := sha256(convert_to(jsonb_build_array(request_task.kind, request_task.input,
        to_jsonb(request_task.requires), request_task.priority, request_task.run_at, request_task.deadline,
        request_task.policy, request_task.parent_id)::text, 'UTF8'));

    if request_task.idempotency_key is not null then
        update convoke.tasks as t set idempotency_key = null
            where t.org = request_task.org and t.requester = asker
              and t.idempotency_key = request_task.idempotency_key
              and t.state in ('completed', 'failed', 'canceled')
              and t.updated_at < clock_timestamp() - interval '24 hours';
    end if;
    insert into convoke.tasks as t (id, org, kind, requires, class, input, requester, parent_id, root_id,
            idempotency_key, request_hash, priority, state, run_at, due_at, deadline_at, policy, attempts_max)
        values (made, request_task.org, request_task.kind, coalesce(request_task.requires, '{}'),
            convoke.task_class(request_task.org, request_task.requires), coalesce(request_task.input, 'null'),
            asker, request_task.parent_id,
            coalesce((select p.root_id from convoke.tasks p where p.id = request_task.parent_id), made),
            request_task.idempotency_key, body_hash, coalesce(request_task.priority, 0),
            case when later then 'scheduled' else 'open' end, request_task.run_at,
            case when later then request_task.run_at end, request_task.deadline, request_task.policy,
            coalesce((request_task.policy ->> 'attempts_max')::integer, 3))
        on conflict do nothing;
    if not found then
        select t.id, t.request_hash into earlier from convoke.tasks t
            where t.org = request_task.org and t.requester = asker
              and t.idempotency_key = request_task.idempotency_key;
        if earlier.request_hash is distinct from body_hash then
            raise exception 'idempotency key % was used for another request',
                quote_literal(request_task.idempotency_key)
                using errcode = 'unique_violation', hint = 'task ' || earlier.id;
        end if;
        return earlier.id;
    end if;
    insert into convoke.events (org, task_id, epoch, type, body)
        values (request_task.org, made, 0, 'requested', jsonb_build_object('kind', request_task.kind,
            'requires', to_jsonb(coalesce(request_task.requires, '{}')), 'requester', asker,
            'priority', coalesce(request_task.priority, 0)));
    perform pg_logical_emit_message(true, 'convoke', '');
    return made;
end $$;
revoke all on function convoke.request_task from public;
