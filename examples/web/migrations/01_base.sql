-- What every page needs: who is asking, who there is, and the rule that private channels follow.
-- Runs on Convoke's database and on Supabase's: both have schema auth, schema realtime and role authenticated.

create schema if not exists app;
grant usage on schema app to authenticated;

-- The person of the token. On Supabase `sub` is a uuid, here a name: text holds both.
create function app.me() returns text language sql stable set search_path = '' as
  $$ select auth.jwt() ->> 'sub' $$;
create function app.org() returns text language sql stable set search_path = '' as
  $$ select coalesce(auth.jwt() ->> 'org', 'demo') $$;
-- The part of a channel's topic behind its prefix, or null for another prefix: 'chat:den' and 'chat:' give 'den'.
create function app.room_of(prefix text) returns text language sql stable set search_path = '' as
  $$ select case when starts_with(realtime.topic(), prefix) then substr(realtime.topic(), length(prefix) + 1) end $$;

create table public.people (
  id text primary key check (id ~ '^[a-z][a-z0-9-]{0,30}$'),
  name text not null check (length(name) between 1 and 60)
);
alter table public.people enable row level security;
create policy "people see people" on public.people for select to authenticated using (true);
grant select on public.people to authenticated;

-- Who may enter what: one row for a person and a topic's name, like chat:den. `reader` hears and does not speak.
create table public.members (
  topic text not null check (length(topic) <= 200),
  user_id text not null references public.people on delete cascade,
  role text not null default 'writer' check (role in ('reader', 'writer', 'owner')),
  primary key (topic, user_id)
);
create index members_user on public.members (user_id);
alter table public.members enable row level security;
alter table public.members replica identity full;
grant select on public.members to authenticated;

-- Security definer, because a policy of members cannot ask members itself.
create function app.role_in(topic text) returns text language sql stable security definer set search_path = '' as
  $$ select m.role from public.members m where m.topic = role_in.topic and m.user_id = app.me() $$;
create function app.reads(topic text) returns boolean language sql stable set search_path = '' as
  $$ select app.role_in(topic) is not null $$;
create function app.writes(topic text) returns boolean language sql stable set search_path = '' as
  $$ select app.role_in(topic) in ('writer', 'owner') $$;

create policy "members see who else is a member" on public.members for select to authenticated
  using (app.reads(topic));

-- Private channels: members join; readers are present and hear; only writers speak. A cursor is speaking too,
-- so readers have presence alone.
create policy "members hear" on realtime.messages for select to authenticated
  using (extension in ('broadcast', 'presence') and app.reads(realtime.topic()));
create policy "members are present, writers speak" on realtime.messages for insert to authenticated
  with check (case extension when 'presence' then app.reads(realtime.topic())
                             when 'broadcast' then app.writes(realtime.topic()) else false end);

alter publication supabase_realtime add table public.members;
