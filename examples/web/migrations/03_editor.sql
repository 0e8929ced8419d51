-- The editor: an append-only log of Yjs updates, now and then merged into a snapshot.

create table public.documents (
  id text primary key check (id ~ '^[a-z0-9][a-z0-9-]{0,60}$'),
  title text not null,
  snapshot bytea,
  -- The last update that the snapshot contains.
  snapshot_seq bigint not null default 0
);
create table public.document_updates (
  doc text not null references public.documents on delete cascade,
  seq bigint generated always as identity,
  update bytea not null check (octet_length(update) between 1 and 4000000),
  author text not null default app.me(),
  at timestamptz not null default clock_timestamp(),
  primary key (doc, seq)
);
alter table public.documents enable row level security;
alter table public.document_updates enable row level security;
create policy "members read" on public.documents for select to authenticated using (app.reads('doc:' || id));
create policy "writers compact" on public.documents for update to authenticated
  using (app.writes('doc:' || id)) with check (app.writes('doc:' || id));
create policy "members read" on public.document_updates for select to authenticated using (app.reads('doc:' || doc));
create policy "writers append" on public.document_updates for insert to authenticated
  with check (author = app.me() and app.writes('doc:' || doc));
create policy "writers drop what a snapshot contains" on public.document_updates for delete to authenticated
  using (app.writes('doc:' || doc)
         and seq <= (select d.snapshot_seq from public.documents d where d.id = doc));
grant select, update (snapshot, snapshot_seq) on public.documents to authenticated;
grant select, delete on public.document_updates to authenticated;
grant insert (doc, update) on public.document_updates to authenticated;

-- Inserts are told as hints, so that an update that was stored while a broadcast was lost is read soon.
alter publication supabase_realtime add table public.documents;
