-- Adds the members absence and outage of a policy, validated by SQL like everywhere else.

-- Returns what is wrong with the members of a policy, or null. `verifies`: it is the policy of a verifier.
create or replace function convoke.policy_fault(members jsonb, verifies boolean) returns text language plpgsql immutable
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
        when name in ('absence', 'outage') then
            ns := case when jsonb_typeof(value) = 'string' then convoke.duration_ns(value #>> '{}') end;
            if ns is null then
                return format('%s: %s is not a time like "30s"', name, value);
            end if;
            if ns > 364 * 86400000000000::numeric then
                return format('%s is %s; use at most 364 days', name, value);
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
