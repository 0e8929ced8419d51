-- The analytics dashboard: events of an org and the widgets that show them.

create table public.analytics_events (
  id bigint generated always as identity primary key,
  org text not null default app.org(),
  at timestamptz not null default clock_timestamp(),
  source text not null check (length(source) between 1 and 60),
  name text not null check (length(name) between 1 and 60),
  -- No check against NaN: a page must survive what a database may hold.
  value double precision,
  dims jsonb not null default '{}' check (octet_length(dims::text) <= 2000)
);
create index analytics_events_newest on public.analytics_events (org, source, at desc);
alter table public.analytics_events replica identity full;

create table public.widgets (
  id text primary key,
  org text not null default app.org(),
  kind text not null check (kind in ('line', 'counter', 'gauge', 'bars', 'table')),
  title text not null,
  source text not null,
  settings jsonb not null default '{}',
  max_data_points int not null default 50 check (max_data_points between 2 and 1000),
  place int not null default 0
);

alter table public.analytics_events enable row level security;
alter table public.widgets enable row level security;
create policy "of one's org" on public.analytics_events for all to authenticated
  using (org = app.org()) with check (org = app.org());
create policy "of one's org" on public.widgets for all to authenticated
  using (org = app.org()) with check (org = app.org());
grant select, delete on public.analytics_events, public.widgets to authenticated;
grant insert (at, source, name, value, dims), update (at, value, dims) on public.analytics_events to authenticated;
grant insert (id, kind, title, source, settings, max_data_points, place), update (title, settings, max_data_points, place)
  on public.widgets to authenticated;

alter publication supabase_realtime add table public.analytics_events, public.widgets;
