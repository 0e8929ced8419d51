-- Requests by SQL are validated like all others: JSON that the daemon cannot read, invalid durations and unsupported
-- policies are refused by the statement. A repeated request is compared by value, not by its text.

-- The policies of the daemon's settings, `{default, kinds: {<kind>: …}}`; a request's policy overrides them.
alter table convoke.task_defaults add column policies jsonb not null default '{}';

-- Whether a text is a word: 1 to 200 bytes in UTF-8, without control characters.
create function convoke.is_word(word text) returns boolean language sql immutable set search_path = pg_catalog, pg_temp as $$
    select coalesce(octet_length(convert_to(word, 'UTF8')) between 1 and 200 and word collate "C" !~ '[[:cntrl:]]'
        -- The C1 control characters, which are no class in collation C.
        and (getdatabaseencoding() <> 'UTF8' or word !~ E'[\\u0080-\\u009f]'), false)
$$;

-- Returns why the daemon cannot read a JSON value; null if it can.
create function convoke.json_fault(value jsonb) returns text language sql immutable set search_path = pg_catalog, pg_temp as $$
    select case
        when jsonb_path_exists(value, 'strict $.**{100 to last} ? (@.type() == "object" || @.type() == "array")')
            then 'is nested more than 100 deep'
        when jsonb_path_exists(value, 'strict $.** ? (@.type() == "number"
                && (@ > 1.7976931348623157e308 || @ < -1.7976931348623157e308))')
            then 'has a number beyond 1.7976931348623157e308'
    end
$$;

-- Returns the nanoseconds of a duration like `1m 30s` or `4.2h`; null if it is invalid.
create function convoke.duration_ns(written text) returns numeric language plpgsql immutable
set search_path = pg_catalog, pg_temp as $$
declare
    part text[];
    total numeric := 0;
    unit_ns numeric;
    fraction_ns numeric;
begin
    if written = '0' then
        return 0;
    end if;
    if octet_length(written) > 1000 or written !~ '^[[:space:]]*([0-9][0-9[:space:]]*([.][0-9[:space:]]*[0-9][0-9[:space:]]*)?[A-Za-z]+[[:space:]]*)+$' then
        return null;
    end if;
    for part in select regexp_matches(regexp_replace(written, '[[:space:]]+(?=[0-9.])', ' ', 'g'),
            '([0-9][0-9 ]*)([.][0-9 ]+)?[[:space:]]*([A-Za-z]+)', 'g') loop
        unit_ns := case
            when part[3] in ('nanos', 'nsec', 'ns') then 1
            when part[3] in ('usec', 'us') then 1000
            when part[3] in ('millis', 'msec', 'ms') then 1000000
            when part[3] in ('seconds', 'second', 'secs', 'sec', 's') then 1000000000
            when part[3] in ('minutes', 'minute', 'min', 'mins', 'm') then 60000000000
            when part[3] in ('hours', 'hour', 'hr', 'hrs', 'h') then 3600000000000
            when part[3] in ('days', 'day', 'd') then 86400000000000
            when part[3] in ('weeks', 'week', 'wk', 'wks', 'w') then 604800000000000
            when part[3] in ('months', 'month', 'M') then 2630016000000000
            when part[3] in ('years', 'year', 'yr', 'yrs', 'y') then 31557600000000000
        end;
        fraction_ns := ('0' || replace(coalesce(part[2], ''), ' ', ''))::numeric * unit_ns;
        -- A fraction must be exact: a whole number of nanoseconds, and of seconds for hours and larger units.
        if unit_ns is null or (part[2] is not null and unit_ns = 1)
            or fraction_ns % (case when unit_ns >= 3600000000000 then 1000000000 else 1 end) <> 0 then
            return null;
        end if;
        total := total + replace(part[1], ' ', '')::numeric * unit_ns + fraction_ns;
    end loop;
    return total;
end $$;

-- Whether a JSON value is a whole number in this range.
create function convoke.is_whole(value jsonb, least_ numeric, most numeric) returns boolean language sql immutable
set search_path = pg_catalog, pg_temp as $$
    select coalesce(case when jsonb_typeof(value) = 'number' and value::text ~ '^-?[0-9]+$'
        then value::text::numeric between least_ and most end, false)
$$;

-- Returns what is wrong with the members of a policy, or null. `verifies`: it is the policy of a verifier.
create function convoke.policy_fault(members jsonb, verifies boolean) returns text language plpgsql immutable
set search_path = pg_catalog, pg_temp as $$
declare
    name text;
    value jsonb;
    ns numeric;
    fault text;
begin
    for name, value in select * from jsonb_each(members) loop
        case
        when name in ('award', 'fallback', 'on_input_timeout') then
            if jsonb_typeof(value) <> 'string' or (case name
                when 'on_input_timeout' then value #>> '{}' not in ('fail', 'escalate')
                when 'fallback' then value #>> '{}' not in
                    ('first', 'cheapest', 'fastest', 'least_loaded', 'weighted', 'calibrated')
                else value #>> '{}' not in ('first', 'cheapest', 'fastest', 'least_loaded', 'weighted', 'calibrated',
                    'direct', 'requester') end) then
                return format('%s: %s is not one of its words', name, value);
            end if;
        when name in ('attempts_max', 'rounds_max') then
            if not convoke.is_whole(value, 1, 9999) then
                return format('%s is not a number from 1 to 9999', name);
            end if;
        when name = 'offers_min' then
            if value <> 'null' and not convoke.is_whole(value, 0, 4294967295) then
                return 'offers_min is not a number from 0 to 4294967295';
            end if;
        when name in ('choose_within', 'bid_window', 'quiet_gap', 'confirm', 'start', 'lease', 'attempt',
                'cancel_grace', 'progress', 'backoff', 'offer_validity', 'input') then
            ns := case when jsonb_typeof(value) = 'string' then convoke.duration_ns(value #>> '{}') end;
            if ns is null then
                return format('%s: %s is not a time like "30s"', name, value);
            end if;
            -- At most 7 days, and 364 for an answer.
            if ns <= 0 or ns > (case name when 'input' then 364 else 7 end) * 86400000000000::numeric then
                return format('%s is %s; use more than 0 and at most %s days', name, value,
                    case name when 'input' then 364 else 7 end);
            end if;
        when name = 'agent' then
            if value <> 'null' and not (jsonb_typeof(value) = 'string'
                and value #>> '{}' ~ '^[a-z0-9][a-z0-9_-]{0,62}$') then
                return format('agent: %s is not the name of an agent', value);
            end if;
        when name = 'weights' then
            if value <> 'null' and (jsonb_typeof(value) <> 'object'
                or exists (select from jsonb_each(case when jsonb_typeof(value) = 'object' then value else '{}' end) as w
                    where w.key not in ('cost', 'speed', 'confidence', 'load', 'reputation')
                        or not convoke.is_whole(w.value, 0, 1000))
                or not exists (select from jsonb_each(case when jsonb_typeof(value) = 'object' then value else '{}' end) as w
                    where w.value <> '0')) then
                return 'weights must be numbers from 0 to 1000, and one of them more than 0';
            end if;
        when name = 'good_enough' then
            if value <> 'null' and (jsonb_typeof(value) <> 'object'
                or exists (select from jsonb_each(case when jsonb_typeof(value) = 'object' then value else '{}' end) as g
                    where not case
                        when g.value = 'null' then g.key in ('cost', 'eta_ms', 'confidence')
                        when g.key in ('cost', 'eta_ms') then convoke.is_whole(g.value, 0, 18446744073709551615)
                        -- The daemon reads it as a 32-bit float: numbers in these bounds round to 0 to 1.
                        when g.key = 'confidence' then jsonb_typeof(g.value) = 'number'
                            and (g.value #>> '{}')::numeric between -7e-46 and 1.0000000596
                        else false end)
                or not exists (select from jsonb_each(case when jsonb_typeof(value) = 'object' then value else '{}' end) as g
                    where g.value <> 'null')) then
                return 'good_enough needs cost, eta_ms or confidence (0 to 1)';
            end if;
        when name = 'result_schema' and not verifies then
            if value <> 'null' and jsonb_typeof(value) not in ('object', 'boolean') then
                return 'result_schema is not a JSON schema';
            end if;
            if octet_length(value::text) > 65536 then
                return 'result_schema is larger than 65536 bytes';
            end if;
            if jsonb_path_exists(value, '$.** ? (@.type() == "object").keyvalue() ? ((@.key == "$ref" || @.key == "$dynamicRef"
                || @.key == "$recursiveRef") && @.value.type() == "string" && !(@.value starts with "#")).key',
                '{}', true) then
                return 'result_schema: a reference leads out of the schema; only those that begin with # are followed';
            end if;
        when name = 'verifier' and not verifies then
            if value <> 'null' then
                fault := convoke.verifier_fault(value);
                if fault is not null then
                    return format('verifier: %s', fault);
                end if;
            end if;
        when name in ('result_schema', 'verifier') then
            return 'what a verifier says is not verified';
        else
            return format('%s: there is no such member', to_jsonb(name));
        end case;
    end loop;
    if (coalesce(members ->> 'award', 'weighted') = 'direct') <> (members ->> 'agent' is not null) then
        return 'agent and award = "direct" belong together: name the agent';
    end if;
    return null;
end $$;

-- Returns what is wrong with the verifier in a policy, or null.
create function convoke.verifier_fault(verifier jsonb) returns text language plpgsql immutable
set search_path = pg_catalog, pg_temp as $$
declare
    requires jsonb := coalesce(verifier -> 'requires', '[]');
    members jsonb := coalesce(verifier -> 'policy', '{}');
begin
    if jsonb_typeof(verifier) <> 'object' or jsonb_typeof(verifier -> 'kind') is distinct from 'string'
        or not convoke.is_word(verifier ->> 'kind') or jsonb_typeof(requires) <> 'array'
        or jsonb_typeof(members) <> 'object' then
        return 'it has a kind of 1 to 200 bytes, and may have requires and a policy';
    end if;
    if exists (select from jsonb_object_keys(verifier) as key where key not in ('kind', 'requires', 'policy')) then
        return 'it has no other members than kind, requires and policy';
    end if;
    if jsonb_array_length(requires) > 50 or exists (select from jsonb_array_elements(requires) as need
            where jsonb_typeof(need) <> 'string' or not convoke.is_word(need #>> '{}')) then
        return 'requires has up to 50 words of 1 to 200 bytes';
    end if;
    if members = '{}' then
        return null;
    end if;
    return convoke.policy_fault(members, true);
end $$;

revoke all on function convoke.is_word, convoke.json_fault, convoke.duration_ns, convoke.is_whole, convoke.policy_fault,
    convoke.verifier_fault from public;

-- Requests a task inside the caller's own transaction: committed with it, or not at all. The commit itself wakes the
-- daemon, because the message travels in the WAL.
create or replace function convoke.request_task(
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
    payload jsonb := coalesce(request_task.input, 'null');
    earlier record;
    kin record;
    fault text;
    settings record;
    merged jsonb;
    later boolean := coalesce(request_task.run_at > clock_timestamp(), false);
    -- As one-dimensional arrays with lower bound 1.
    needs text[] := array(select unnest(request_task.requires));
    after uuid[] := array(select unnest(request_task.depends_on));
    wished uuid[];
    root uuid := made;
    ended boolean := true;
    blocked boolean := false;
    hung boolean := false;
begin
    if not convoke.is_word(request_task.kind) then
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
    if octet_length(payload::text) > 1048576 then
        raise exception 'input is larger than 1048576 bytes' using errcode = 'program_limit_exceeded';
    end if;
    fault := convoke.json_fault(payload);
    if fault is not null then
        raise exception 'input %', fault using errcode = 'invalid_parameter_value';
    end if;
    if request_task.run_at not between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00' then
        raise exception 'run_at % is not between the years 1 and 9999', request_task.run_at
            using errcode = 'invalid_parameter_value', hint = 'leave it out for now';
    end if;
    if request_task.deadline not between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00' then
        raise exception 'deadline % is not between the years 1 and 9999', request_task.deadline
            using errcode = 'invalid_parameter_value', hint = 'leave it out for none';
    end if;
    if jsonb_typeof(request_task.policy) is distinct from 'object' then
        raise exception 'policy is not a JSON object' using errcode = 'invalid_parameter_value';
    end if;
    if octet_length(request_task.policy::text) > 1048576 then
        raise exception 'policy is larger than 1048576 bytes' using errcode = 'program_limit_exceeded';
    end if;
    fault := convoke.json_fault(request_task.policy);
    if fault is not null then
        raise exception 'policy %', fault using errcode = 'invalid_parameter_value';
    end if;
    select d.attempts_max, coalesce(d.policies -> 'kinds' -> request_task.kind, d.policies -> 'default', '{}') as members
        into settings from convoke.task_defaults d;
    merged := coalesce(settings.members, '{}') || request_task.policy;
    fault := case when request_task.policy <> '{}' then convoke.policy_fault(merged, false) end;
    if fault is not null then
        raise exception 'policy: %', fault using errcode = 'invalid_parameter_value';
    end if;
    if coalesce(array_ndims(request_task.requires), 1) <> 1 then
        raise exception 'requires is a list of lists; use a list of texts' using errcode = 'invalid_parameter_value';
    end if;
    if exists (select from unnest(needs) as need where need is null) then
        raise exception 'requires has a null' using errcode = 'invalid_parameter_value';
    end if;
    if cardinality(needs) > 50 then
        raise exception 'requires has % members; use at most 50', cardinality(needs)
            using errcode = 'invalid_parameter_value';
    end if;
    if exists (select from unnest(needs) as need where not convoke.is_word(need)) then
        raise exception 'each of requires has 1 to 200 bytes and no control characters'
            using errcode = 'invalid_parameter_value';
    end if;
    if request_task.idempotency_key is not null and not convoke.is_word(request_task.idempotency_key) then
        raise exception 'idempotency_key has 1 to 200 bytes and no control characters'
            using errcode = 'invalid_parameter_value';
    end if;
    if coalesce(array_ndims(request_task.depends_on), 1) <> 1 then
        raise exception 'depends_on is a list of lists; use a list of ids' using errcode = 'invalid_parameter_value';
    end if;
    if exists (select from unnest(after) as id where id is null) or cardinality(after) > 100 then
        raise exception 'depends_on has at most 100 ids and no null' using errcode = 'invalid_parameter_value';
    end if;
    if coalesce(request_task.on_dependency_failure, '') not in ('cancel', 'run') then
        raise exception 'on_dependency_failure is cancel or run' using errcode = 'invalid_parameter_value';
    end if;
    wished := after;

    if request_task.idempotency_key is not null then
        update convoke.tasks as t set idempotency_key = null
            where t.org = request_task.org and t.requester = asker
              and t.idempotency_key = request_task.idempotency_key
              and t.state in ('completed', 'failed', 'canceled')
              and t.updated_at < clock_timestamp() - interval '24 hours';
    end if;
    -- At most twice: another transaction may insert the same key between the select and the insert.
    for turn in 1..2 loop
        if request_task.idempotency_key is not null then
            -- Compared by value: instants, numbers and defaults, regardless of their text.
            select t.id, t.kind = request_task.kind and t.input = payload and to_jsonb(t.requires) = to_jsonb(needs)
                    and t.priority = coalesce(request_task.priority, 0)
                    and t.run_at is not distinct from request_task.run_at
                    -- A deadline that had passed at a requeue was removed from the row.
                    and (t.deadline_at is not distinct from request_task.deadline
                        or (t.deadline_at is null and request_task.deadline <= clock_timestamp()))
                    and t.policy = request_task.policy and t.parent_id is not distinct from request_task.parent_id
                    and t.detached = coalesce(request_task.detached, false)
                    and t.depends_on @> wished and t.depends_on <@ wished
                    and t.run_anyway = (request_task.on_dependency_failure = 'run') as same
                into earlier from convoke.tasks t
                where t.org = request_task.org and t.requester = asker
                  and t.idempotency_key = request_task.idempotency_key;
            if found then
                if earlier.same is not true then
                    raise exception 'idempotency key % was used for another request',
                        quote_literal(request_task.idempotency_key)
                        using errcode = 'unique_violation', hint = 'task ' || earlier.id;
                end if;
                return earlier.id;
            end if;
        end if;
        -- Parent and dependencies are locked and marked, so that none can end unnoticed.
        if not hung and (request_task.parent_id is not null or after <> '{}') then
            hung := true;
            for kin in select t.id, t.state, t.root_id from convoke.tasks t
                where (t.id = request_task.parent_id or t.id = any(after)) and t.org = request_task.org
                order by t.id for update
            loop
                if kin.id = request_task.parent_id then
                    if kin.state in ('canceling', 'completed', 'failed', 'canceled') then
                        raise exception 'the parent is %', kin.state
                            using errcode = 'object_not_in_prerequisite_state';
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
                    has_children = t.has_children
                        or (t.id is not distinct from request_task.parent_id and not coalesce(request_task.detached, false))
                where t.id = request_task.parent_id or t.id = any(after);
        end if;
        insert into convoke.tasks as t (id, org, kind, requires, class, input, requester, parent_id, root_id,
                idempotency_key, priority, state, run_at, due_at, deadline_at, policy, attempts_max,
                detached, depends_on, run_anyway)
            values (made, request_task.org, request_task.kind, needs,
                convoke.task_class(request_task.org, needs), payload,
                asker, request_task.parent_id, root,
                request_task.idempotency_key, coalesce(request_task.priority, 0),
                case when blocked then 'blocked' when later then 'scheduled' else 'open' end, request_task.run_at,
                case when blocked then clock_timestamp() when later then request_task.run_at end,
                request_task.deadline, request_task.policy,
                coalesce((merged ->> 'attempts_max')::integer, settings.attempts_max, 3),
                coalesce(request_task.detached, false), after, request_task.on_dependency_failure = 'run')
            on conflict do nothing;
        exit when found;
        if turn = 2 then
            raise exception 'idempotency key % is in use by another request now', quote_literal(request_task.idempotency_key)
                using errcode = 'serialization_failure';
        end if;
    end loop;
    insert into convoke.events (org, task_id, epoch, type, body)
        values (request_task.org, made, 0, 'requested', jsonb_strip_nulls(jsonb_build_object(
            'kind', request_task.kind, 'requires', to_jsonb(needs), 'requester', asker,
            'priority', coalesce(request_task.priority, 0), 'parent_id', request_task.parent_id,
            'depends_on', case when after <> '{}' then to_jsonb(after) end)));
    perform pg_logical_emit_message(true, 'convoke', '');
    return made;
end $$;
