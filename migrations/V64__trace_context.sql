-- The trace context of a request (W3C `traceparent`): the spans of the task belong to that trace. Null for a task that
-- begins a trace of its own.
alter table convoke.tasks add column traceparent text;

-- Whether a text is a trace context: a version, the ids of a trace and a span, and flags.
create function convoke.is_traceparent(written text) returns boolean language sql immutable
set search_path = pg_catalog, pg_temp as $$
    select coalesce(written ~ '^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$' and left(written, 2) <> 'ff'
        and substr(written, 4, 32) !~ '^0+$' and substr(written, 37, 16) !~ '^0+$', false)
$$;
revoke all on function convoke.is_traceparent from public;

-- The context of a part: the trace of the whole, and as the span before it that of what has this id. Null without one.
create function convoke.part_traceparent(whole text, id uuid) returns text language sql immutable
set search_path = pg_catalog, pg_temp as $$
    select left(whole, 36) || right(replace(id::text, '-', ''), 16) || right(whole, 3)
$$;
revoke all on function convoke.part_traceparent from public;

-- request_task gets the parameter traceparent. It is dropped and made again, because a second function with more
-- parameters would make calls ambiguous; whoever may call it may call the new one.
do $$
declare
    definition text := pg_get_functiondef('convoke.request_task'::regproc);
    changed text;
    granted record;
    grants text[] := '{}';
begin
    for granted in select case a.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end as role,
            a.is_grantable
        from pg_proc p cross join lateral aclexplode(p.proacl) a
        where p.oid = 'convoke.request_task'::regproc and a.privilege_type = 'EXECUTE' and a.grantee <> p.proowner
    loop
        grants := grants || format('grant execute on function convoke.request_task to %s%s', granted.role,
            case when granted.is_grantable then ' with grant option' else '' end);
    end loop;
    changed := regexp_replace(definition, '(on_dependency_failure text DEFAULT ''cancel''::text)\)',
        '\1, traceparent text DEFAULT NULL::text)');
    changed := replace(changed, '    wished := after;
', '    if request_task.traceparent is not null and not convoke.is_traceparent(request_task.traceparent) then
        raise exception ''traceparent is no trace context of W3C'' using errcode = ''invalid_parameter_value'',
            hint = ''write it like 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01, or leave it out'';
    end if;
    wished := after;
');
    changed := replace(changed, '                detached, depends_on, run_anyway)
', '                detached, depends_on, run_anyway, traceparent)
');
    changed := replace(changed, 'after, request_task.on_dependency_failure = ''run'')
            on conflict', 'after, request_task.on_dependency_failure = ''run'',
                coalesce(request_task.traceparent, (select convoke.part_traceparent(p.traceparent, p.id)
                    from convoke.tasks p where p.id = request_task.parent_id)))
            on conflict');
    if (length(changed) - length(replace(changed, 'traceparent', ''))) / length('traceparent') <> 9 then
        raise exception 'convoke.request_task is not as its migrations made it';
    end if;
    drop function convoke.request_task;
    execute changed;
    revoke all on function convoke.request_task from public;
    foreach changed in array grants loop
        execute changed;
    end loop;
end $$;
