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

-- Requests a task inside the caller's own transaction: committed with it, or not at all.
-- The commit itself wakes the daemon: the message travels in the write-ahead log.
drop function convoke.request_task;
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
    parent_id uuid default null,
    detached boolean default false,
    depends_on uuid[] default '{}',
    on_dependency_failure text default 'cancel'
) returns uuid language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    made uuid := convoke.uuid_v7();
    asker text := 'sql:' || session_user;
    body_hash bytea;
    earlier record;
    kin record;
    later boolean := coalesce(request_task.run_at > clock_timestamp(), false);
    needs text[] := coalesce(request_task.requires, '{}');
    after uuid[] := coalesce(request_task.depends_on, '{}');
    root uuid := made;
    ended boolean := true;
    blocked boolean := false;
begin
    if coalesce(octet_length(request_task.kind), 0) not between 1 and 200 or request_task.kind ~ '[[:cntrl:]]' then
        raise exception 'kind has 1 to 200 bytes and no control characters' using errcode = 'invalid_parameter_value';
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
    if octet_length(request_task.policy::text) > 1048576 then
        raise exception 'policy is larger than 1048576 bytes' using errcode = 'program_limit_exceeded';
    end if;
    if coalesce(request_task.policy ->> 'attempts_max', '3') !~ '^[1-9][0-9]{0,3}$' then
        raise exception 'policy.attempts_max is not a number from 1 to 9999'
            using errcode = 'invalid_parameter_value';
    end if;
    if array_position(needs, null) is not null then
        raise exception 'requires has a null' using errcode = 'invalid_parameter_value';
    end if;
    if cardinality(needs) > 50 then
        raise exception 'requires has % members; use at most 50', cardinality(needs)
            using errcode = 'invalid_parameter_value';
    end if;
    if exists (select from unnest(needs) as need
            where octet_length(need) not between 1 and 200 or need ~ '[[:cntrl:]]') then
        raise exception 'each of requires has 1 to 200 bytes and no control characters'
            using errcode = 'invalid_parameter_value';
    end if;
    if octet_length(request_task.idempotency_key) not between 1 and 200 then
        raise exception 'idempotency_key has 1 to 200 bytes' using errcode = 'invalid_parameter_value';
    end if;
    if array_position(after, null) is not null or cardinality(after) > 100 then
        raise exception 'depends_on has at most 100 ids and no null' using errcode = 'invalid_parameter_value';
    end if;
    if coalesce(request_task.on_dependency_failure, '') not in ('cancel', 'run') then
        raise exception 'on_dependency_failure is cancel or run' using errcode = 'invalid_parameter_value';
    end if;
    body_hash := sha256(convert_to(jsonb_build_array(request_task.kind, request_task.input,
        to_jsonb(request_task.requires), request_task.priority, request_task.run_at, request_task.deadline,
        request_task.policy, request_task.parent_id, request_task.detached, to_jsonb(after),
        request_task.on_dependency_failure)::text, 'UTF8'));

    if request_task.idempotency_key is not null then
        update convoke.tasks as t set idempotency_key = null
            where t.org = request_task.org and t.requester = asker
              and t.idempotency_key = request_task.idempotency_key
              and t.state in ('completed', 'failed', 'canceled')
              and t.updated_at < clock_timestamp() - interval '24 hours';
        select t.id, t.request_hash into earlier from convoke.tasks t
            where t.org = request_task.org and t.requester = asker
              and t.idempotency_key = request_task.idempotency_key;
        if found then
            if earlier.request_hash is distinct from body_hash then
                raise exception 'idempotency key % was used for another request',
                    quote_literal(request_task.idempotency_key)
                    using errcode = 'unique_violation', hint = 'task ' || earlier.id;
            end if;
            return earlier.id;
        end if;
    end if;
    -- What it hangs on, locked and marked, so that no end of it is missed.
    if request_task.parent_id is not null or after <> '{}' then
        for kin in select t.id, t.state, t.root_id from convoke.tasks t
            where (t.id = request_task.parent_id or t.id = any(after)) and t.org = request_task.org
            order by t.id for update
        loop
            if kin.id = request_task.parent_id then
                if kin.state in ('canceling', 'completed', 'failed', 'canceled') then
                    raise exception 'the parent is %', kin.state using errcode = 'object_not_in_prerequisite_state';
                end if;
                root := kin.root_id;
            end if;
            if kin.id = any(after) then
                after := array_append(array_remove(after, kin.id), kin.id);
                blocked := blocked or kin.state <> 'completed';
                ended := ended and kin.state in ('completed', 'failed', 'canceled');
            end if;
        end loop;
        if request_task.parent_id is not null and not exists (select from convoke.tasks t
                where t.id = request_task.parent_id and t.org = request_task.org)
            or exists (select from unnest(after) as a(id) where not exists (
                select from convoke.tasks t where t.id = a.id and t.org = request_task.org)) then
            raise exception 'there is no such task in org %: parent_id and depends_on name tasks that are there',
                request_task.org using errcode = 'foreign_key_violation';
        end if;
        update convoke.tasks as t set followed = t.followed or t.id = any(after),
                has_children = t.has_children or (t.id is not distinct from request_task.parent_id and not request_task.detached)
            where t.id = request_task.parent_id or t.id = any(after);
    end if;
    insert into convoke.tasks as t (id, org, kind, requires, class, input, requester, parent_id, root_id,
            idempotency_key, request_hash, priority, state, run_at, due_at, deadline_at, policy, attempts_max,
            detached, depends_on, run_anyway)
        values (made, request_task.org, request_task.kind, needs,
            convoke.task_class(request_task.org, needs), coalesce(request_task.input, 'null'),
            asker, request_task.parent_id, root,
            request_task.idempotency_key, body_hash, coalesce(request_task.priority, 0),
            case when blocked then 'blocked' when later then 'scheduled' else 'open' end, request_task.run_at,
            case when blocked then clock_timestamp() when later then request_task.run_at end,
            request_task.deadline, request_task.policy,
            coalesce((request_task.policy ->> 'attempts_max')::integer,
                (select d.attempts_max from convoke.task_defaults d), 3),
            coalesce(request_task.detached, false), after, request_task.on_dependency_failure = 'run')
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
        values (request_task.org, made, 0, 'requested', jsonb_strip_nulls(jsonb_build_object(
            'kind', request_task.kind, 'requires', to_jsonb(needs), 'requester', asker,
            'priority', coalesce(request_task.priority, 0), 'parent_id', request_task.parent_id,
            'depends_on', case when after <> '{}' then to_jsonb(after) end)));
    perform pg_logical_emit_message(true, 'convoke', '');
    return made;
end $$;
revoke all on function convoke.request_task from public;

-- Whether the bearer of the present token may see what belongs to an org: its own, as over HTTP.
create function convoke.sees(org text) returns boolean language sql stable as $$
    select coalesce(claims ->> 'org', case when claims ->> 'role' <> 'anon' then 'default' end) = org
    from (select nullif(current_setting('request.jwt.claims', true), '')::jsonb as claims) as token
$$;

-- Observers read the rows of their org. The daemon owns the tables and is not bound by this.
alter table convoke.tasks enable row level security;
alter table convoke.offers enable row level security;
alter table convoke.assignments enable row level security;
alter table convoke.agents enable row level security;
create policy observers on convoke.tasks for select using (convoke.sees(org));
create policy observers on convoke.agents for select using (convoke.sees(org));
create policy observers on convoke.offers for select
    using (exists (select from convoke.tasks t where t.id = task_id));
create policy observers on convoke.assignments for select
    using (exists (select from convoke.tasks t where t.id = task_id));

-- Lets the roles of tokens read, as far as they exist; the daemon calls it at every start, since roles belong
-- to the server and may come later.
create function convoke.admit_observers() returns void language plpgsql as $$
declare
    role_name text;
begin
    for role_name in select rolname from pg_roles where rolname in ('anon', 'authenticated', 'service_role') loop
        execute format('grant usage on schema convoke to %I', role_name);
        execute format('grant select on convoke.tasks, convoke.offers, convoke.assignments, convoke.agents to %I',
            role_name);
        execute format('grant execute on function convoke.sees to %I', role_name);
    end loop;
end $$;
revoke all on function convoke.admit_observers from public;

-- Makes the tables of the negotiation watchable by postgres_changes.
create function convoke.observe(publication text) returns void language plpgsql as $$
declare
    name text;
begin
    if not exists (select from pg_publication p where p.pubname = observe.publication and not p.puballtables) then
        return;
    end if;
    foreach name in array array['tasks', 'offers', 'assignments', 'agents'] loop
        if not exists (select from pg_publication_tables p where p.pubname = observe.publication
            and p.schemaname = 'convoke' and p.tablename = name) then
            execute format('alter publication %I add table convoke.%I', observe.publication, name);
        end if;
    end loop;
end $$;
revoke all on function convoke.observe from public;
