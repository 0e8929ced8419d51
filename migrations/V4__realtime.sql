-- Schema realtime as Supabase has it: messages, the functions that send, the roles and auth helpers that
-- policies name. What is there already is left as it is: a database of Supabase's own keeps its schema.
--
-- Roles belong to the whole server and need rights that not every daemon has, so this is a function that
-- says what is lacking instead of failing. The daemon calls it again at every start; what an operator
-- has mended meanwhile is used then. With `mend` false it only looks.

-- In which order messages were committed: the cursor of replays. Kept as long as the messages.
create table convoke.message (
  commit_lsn pg_lsn not null,
  index integer not null,
  topic text not null,
  id uuid not null,
  inserted_at timestamp not null,
  primary key (commit_lsn, index)
);
create index message_topic on convoke.message (topic, commit_lsn, index);
create index message_inserted_at on convoke.message (inserted_at);

create function convoke.prepare_realtime(mend boolean)
returns table (what text, ok boolean, seen text, remedy text)
language plpgsql set search_path = '' as $prepare$
declare
  me text := current_user;
  role_name text;
  member_option text := case when current_setting('server_version_num')::int >= 160000 then 'SET' else 'MEMBER' end;
  lacks text;
begin
  foreach role_name in array array['anon', 'authenticated', 'service_role'] loop
    lacks := null;
    if mend and not exists (select from pg_catalog.pg_roles where rolname = role_name) then
      begin
        execute format('create role %I nologin noinherit%s', role_name,
                       case when role_name = 'service_role' then ' bypassrls' else '' end);
      exception
        when duplicate_object or unique_violation then null; -- another daemon of this server was faster
        when others then lacks := sqlerrm;
      end;
    end if;
    if not exists (select from pg_catalog.pg_roles where rolname = role_name) then
      what := 'role ' || role_name; ok := false; seen := coalesce(lacks, 'missing');
      remedy := format('create role %I nologin noinherit%s; grant %I to %I', role_name,
                       case when role_name = 'service_role' then ' bypassrls' else '' end, role_name, me);
      return next;
      continue;
    end if;
    if mend and not pg_catalog.pg_has_role(me, role_name, member_option) then
      begin
        execute format('grant %I to %I', role_name, me);
      exception when others then null; -- it is told below
      end;
    end if;
    what := 'role ' || role_name;
    ok := pg_catalog.pg_has_role(me, role_name, member_option);
    seen := case when ok then 'there' else format('%I may not act as it', me) end;
    remedy := case when not ok then format('grant %I to %I', role_name, me) end;
    return next;
  end loop;

  if mend and not exists (select from pg_catalog.pg_class c where c.relnamespace = to_regnamespace('realtime'))
     and not exists (select from pg_catalog.pg_proc p where p.pronamespace = to_regnamespace('realtime')) then
    begin
      perform convoke.make_realtime();
    exception when insufficient_privilege or duplicate_schema then lacks := sqlerrm;
    end;
  end if;
  what := 'schema realtime';
  if to_regclass('realtime.messages') is null then
    ok := false;
    seen := case when to_regnamespace('realtime') is null then 'missing' else 'there without table messages' end;
    remedy := case when to_regnamespace('realtime') is null
      then format('grant create on database %I to %I', current_database(), me)
      else 'drop schema realtime, if nothing needs what is in it' end;
    return next;
    return;
  end if;
  if mend then
    perform convoke.grant_realtime();
  end if;
  ok := has_schema_privilege(me, 'realtime', 'usage')
    and has_table_privilege(me, 'realtime.messages', 'select')
    and has_table_privilege(me, 'realtime.messages', 'insert');
  seen := case when ok then 'there' else format('%I may not read and write realtime.messages', me) end;
  remedy := case when not ok then format(
    'grant usage on schema realtime to %I; grant select, insert on realtime.messages to %I', me, me) end;
  if ok and row_security_active('realtime.messages') then
    ok := false;
    seen := format('%I is subject to the policies of realtime.messages itself', me);
    remedy := format('alter role %I bypassrls', me);
  end if;
  return next;
end
$prepare$;
comment on function convoke.prepare_realtime(boolean) is
  'Makes what schema realtime lacks where it may, and says what it may not';

-- What anon, authenticated and service_role may do, in a schema that is ours.
create function convoke.grant_realtime() returns void
language plpgsql set search_path = '' as $grant$
declare
  role_name text;
begin
  if not exists (select from pg_catalog.pg_namespace
                 where nspname = 'realtime' and nspowner = current_user::regrole
                   and obj_description(oid, 'pg_namespace') = 'made by convoke') then
    return;
  end if;
  foreach role_name in array array['anon', 'authenticated', 'service_role'] loop
    if exists (select from pg_catalog.pg_roles where rolname = role_name)
       and not (has_schema_privilege(role_name, 'realtime', 'usage')
                and has_table_privilege(role_name, 'realtime.messages', 'update')) then
      execute format('grant usage on schema realtime to %I', role_name);
      execute format('grant select, insert, update on realtime.messages to %I', role_name);
    end if;
    if exists (select from pg_catalog.pg_roles where rolname = role_name)
       and exists (select from pg_catalog.pg_namespace
                   where nspname = 'auth' and nspowner = current_user::regrole)
       and not has_schema_privilege(role_name, 'auth', 'usage') then
      execute format('grant usage on schema auth to %I', role_name);
    end if;
  end loop;
end
$grant$;

create function convoke.make_realtime() returns void
language plpgsql set search_path = '' as $make$
begin
  create schema if not exists realtime;
  comment on schema realtime is 'made by convoke';

  create table realtime.messages (
    topic text not null,
    extension text not null,
    payload jsonb,
    event text,
    private boolean default false,
    updated_at timestamp without time zone not null default timezone('utc', now()),
    inserted_at timestamp without time zone not null default timezone('utc', now()),
    id uuid not null default gen_random_uuid(),
    binary_payload bytea,
    primary key (id, inserted_at),
    constraint messages_payload_exclusive check (payload is null or binary_payload is null)
  ) partition by range (inserted_at);
  create index messages_inserted_at_topic_index on realtime.messages (inserted_at desc, topic)
    where extension = 'broadcast' and private is true;
  -- A message never fails for want of its day.
  create table realtime.messages_default partition of realtime.messages default;
  alter table realtime.messages enable row level security;

  create function realtime.topic() returns text
  language sql stable set search_path = '' as
    $f$ select nullif(current_setting('realtime.topic', true), '') $f$;

  -- What could not be sent is told in the log of changes, where the daemon counts it.
  create function realtime.not_sent(topic text, code text) returns void
  language plpgsql set search_path = '' as $f$
  begin
    perform pg_logical_emit_message(true, 'convoke.not_sent',
      jsonb_build_object('topic', topic, 'code', code)::text);
  end
  $f$;

  create function realtime.send(payload jsonb, event text, topic text, private boolean default true)
  returns void language plpgsql set search_path = '' as $f$
  declare
    message_id uuid := gen_random_uuid();
  begin
    begin
      if jsonb_typeof(payload) <> 'object' then
        raise exception using errcode = 'invalid_parameter_value', message = 'payload must be an object';
      end if;
      if not payload ? 'id' then
        payload := payload || jsonb_build_object('id', message_id);
      end if;
      perform set_config('realtime.topic', topic, true);
      insert into realtime.messages (id, payload, event, topic, private, extension)
      values (message_id, payload, event, topic, private, 'broadcast');
    exception when others then
      raise warning 'WarnSendingBroadcastMessage: %', sqlerrm;
      perform realtime.not_sent(topic, sqlstate);
    end;
  end
  $f$;

  create function realtime.send_binary(payload bytea, event text, topic text, private boolean default true)
  returns void language plpgsql set search_path = '' as $f$
  begin
    begin
      perform set_config('realtime.topic', topic, true);
      insert into realtime.messages (id, binary_payload, event, topic, private, extension)
      values (gen_random_uuid(), payload, event, topic, private, 'broadcast');
    exception when others then
      raise warning 'WarnSendingBroadcastMessage: %', sqlerrm;
      perform realtime.not_sent(topic, sqlstate);
    end;
  end
  $f$;

  create function realtime.broadcast_changes(
    topic_name text, event_name text, operation text, table_name text, table_schema text,
    new record, old record, level text default 'ROW')
  returns void language plpgsql set search_path = '' as $f$
  begin
    if level = 'STATEMENT' then
      raise exception 'function can only be triggered for each row, not for each statement';
    end if;
    if operation not in ('INSERT', 'UPDATE', 'DELETE') then
      raise exception 'Unexpected operation type: %', operation;
    end if;
    perform realtime.send(
      jsonb_build_object(
        'old_record', case when operation <> 'INSERT' then to_jsonb(old) end,
        'record', case when operation <> 'DELETE' then to_jsonb(new) end,
        'operation', operation,
        'table', table_name,
        'schema', table_schema),
      event_name, topic_name, true);
  exception when others then
    raise exception 'Failed to process the row: %', sqlerrm;
  end
  $f$;

  if to_regnamespace('auth') is null then
    create schema auth;
    comment on schema auth is 'made by convoke';
    create function auth.jwt() returns jsonb
    language sql stable set search_path = '' as
      $f$ select nullif(current_setting('request.jwt.claims', true), '')::jsonb $f$;
    create function auth.role() returns text
    language sql stable set search_path = '' as
      $f$ select coalesce(nullif(current_setting('request.jwt.claim.role', true), ''), auth.jwt() ->> 'role') $f$;
    create function auth.uid() returns uuid
    language sql stable set search_path = '' as
      $f$ select coalesce(nullif(current_setting('request.jwt.claim.sub', true), ''), auth.jwt() ->> 'sub')::uuid $f$;
  end if;
end
$make$;

select convoke.prepare_realtime(true);
