-- Execute privileges. PostgreSQL grants execute on a new function to public; none of these functions is for public.
-- `tests/it/db/rights.rs` lists the privileges.

-- Whether the bearer of the current token may see what belongs to an org: its own, like over HTTP. Only a token
-- without the claim `org` belongs to the default org; a token whose claim is not a text belongs to none.
create or replace function convoke.sees(org text) returns boolean language sql stable as $$
    select coalesce(case
        when claims ? 'org' then jsonb_typeof(claims -> 'org') = 'string' and claims ->> 'org' = org
        else claims ->> 'role' <> 'anon' and org = 'default'
    end, false)
    from (select nullif(current_setting('request.jwt.claims', true), '')::jsonb as claims) as token
$$;

-- Wakes the arbiter when the current transaction commits, on any node. Any role may write a message with this prefix
-- into the WAL; only this function knows the key, and a message without it only costs a comparison.
alter table convoke.task_defaults add column wake_key uuid not null default gen_random_uuid();
create function convoke.call_arbiter() returns void language sql set search_path = '' as $$
    select pg_catalog.pg_logical_emit_message(true, 'convoke', d.wake_key::text) from convoke.task_defaults d
$$;
do $$
declare
    definition text := pg_get_functiondef('convoke.request_task'::regproc);
begin
    definition := replace(definition, 'pg_logical_emit_message(true, ''convoke'', '''')', 'convoke.call_arbiter()');
    if definition !~ 'convoke\.call_arbiter' then
        raise exception 'convoke.request_task does not wake the arbiter';
    end if;
    execute definition;
end $$;

-- Lets the roles of tokens read the rows of their org, if the roles exist. The daemon calls it at every start,
-- because roles belong to the server and may be created later. `anon` may read only if observers are open; over HTTP
-- it may read nothing either.
drop function convoke.admit_observers();
create function convoke.admit_observers(open_to_anon boolean default false) returns void language plpgsql as $$
declare
    role_name text;
begin
    for role_name in select rolname from pg_roles where rolname in ('anon', 'authenticated', 'service_role') loop
        if role_name = 'anon' and not open_to_anon then
            execute 'revoke select on convoke.tasks, convoke.offers, convoke.assignments, convoke.agents from anon';
            continue;
        end if;
        execute format('grant usage on schema convoke to %I', role_name);
        execute format('grant select on convoke.tasks, convoke.offers, convoke.assignments, convoke.agents to %I',
            role_name);
        execute format('grant execute on function convoke.sees to %I', role_name);
    end loop;
end $$;

-- Privileges of anon, authenticated and service_role, in a schema that the daemon created.
create or replace function convoke.grant_realtime() returns void
language plpgsql set search_path = '' as $grant$
declare
  role_name text;
  fn record;
begin
  if not exists (select from pg_catalog.pg_namespace
                 where nspname = 'realtime' and nspowner = current_user::regrole
                   and obj_description(oid, 'pg_namespace') = 'made by convoke') then
    return;
  end if;
  -- The functions are for the roles of tokens, and for roles to which an operator granted the schema by name.
  for fn in select p.oid::regprocedure as name, n.nspacl
      from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
      where obj_description(n.oid, 'pg_namespace') = 'made by convoke' and p.proowner = current_user::regrole
        and (n.nspname, p.proname) in (('realtime', 'topic'), ('realtime', 'not_sent'), ('realtime', 'send'),
          ('realtime', 'send_binary'), ('realtime', 'broadcast_changes'), ('auth', 'jwt'), ('auth', 'role'),
          ('auth', 'uid'))
        and exists (select from pg_catalog.aclexplode(coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner))) a
          where a.grantee = 0)
  loop
    execute format('revoke execute on function %s from public', fn.name);
    for role_name in select a.grantee::regrole::text from pg_catalog.aclexplode(fn.nspacl) a
        where a.grantee <> 0 and a.privilege_type = 'USAGE' loop
      execute format('grant execute on function %s to %s', fn.name, role_name);
    end loop;
  end loop;
  foreach role_name in array array['anon', 'authenticated', 'service_role'] loop
    if not exists (select from pg_catalog.pg_roles where rolname = role_name) then
      continue;
    end if;
    if not (has_schema_privilege(role_name, 'realtime', 'usage')
            and has_table_privilege(role_name, 'realtime.messages', 'update')) then
      execute format('grant usage on schema realtime to %I', role_name);
      execute format('grant select, insert, update on realtime.messages to %I', role_name);
    end if;
    if not has_function_privilege(role_name, 'realtime.topic()', 'execute') then
      execute format('grant execute on all functions in schema realtime to %I', role_name);
    end if;
    if exists (select from pg_catalog.pg_namespace
               where nspname = 'auth' and nspowner = current_user::regrole
                 and obj_description(oid, 'pg_namespace') = 'made by convoke') then
      if not has_schema_privilege(role_name, 'auth', 'usage') then
        execute format('grant usage on schema auth to %I', role_name);
      end if;
      if not has_function_privilege(role_name, 'auth.jwt()', 'execute') then
        execute format('grant execute on all functions in schema auth to %I', role_name);
      end if;
    end if;
  end loop;
end
$grant$;

do $$
declare
    fn regprocedure;
begin
    for fn in select p.oid::regprocedure from pg_proc p where p.pronamespace = 'convoke'::regnamespace loop
        execute format('revoke execute on function %s from public', fn);
    end loop;
end $$;
-- Roles that have read so far keep the functions that their policies call.
do $$
declare
    role_name text;
begin
    for role_name in select rolname from pg_roles where rolname in ('authenticated', 'service_role') loop
        execute format('grant execute on function convoke.sees to %I', role_name);
    end loop;
end $$;
select convoke.grant_realtime();
