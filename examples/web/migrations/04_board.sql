-- The whiteboard: strokes and clears share one order, so that "clear against draw" is decided by the database.

create sequence app.board_order;
grant usage on sequence app.board_order to authenticated;

create table public.strokes (
  id uuid primary key,
  board text not null check (length(board) <= 100),
  author text not null default app.me() references public.people,
  style jsonb not null check (octet_length(style::text) <= 500),
  -- Little-endian float32 triples: x, y, pressure. 60,000 points at most.
  points bytea not null check (octet_length(points) between 12 and 720000 and octet_length(points) % 12 = 0),
  seq bigint not null default nextval('app.board_order'),
  deleted_at timestamptz
);
create index strokes_board on public.strokes (board, seq);
alter table public.strokes replica identity full;

create table public.clears (
  board text not null check (length(board) <= 100),
  seq bigint not null default nextval('app.board_order'),
  author text not null default app.me() references public.people,
  primary key (board, seq)
);
-- One order per board: without the lock a stroke could take a lower number than a clear and commit after it.
create function app.order_board() returns trigger language plpgsql security definer set search_path = '' as $$
begin
  perform pg_advisory_xact_lock(hashtextextended('board:' || new.board, 0));
  new.seq := nextval('app.board_order');
  return new;
end $$;
create trigger in_order before insert on public.strokes for each row execute function app.order_board();
create trigger in_order before insert on public.clears for each row execute function app.order_board();

alter table public.strokes enable row level security;
alter table public.clears enable row level security;
create policy "members see" on public.strokes for select to authenticated using (app.reads('whiteboard:' || board));
create policy "writers draw" on public.strokes for insert to authenticated
  with check (author = app.me() and app.writes('whiteboard:' || board));
create policy "undo your own" on public.strokes for update to authenticated
  using (author = app.me() and app.writes('whiteboard:' || board)) with check (author = app.me());
create policy "members see" on public.clears for select to authenticated using (app.reads('whiteboard:' || board));
create policy "writers clear" on public.clears for insert to authenticated
  with check (author = app.me() and app.writes('whiteboard:' || board));
grant select on public.strokes, public.clears to authenticated;
grant insert (id, board, style, points) on public.strokes to authenticated;
grant update (deleted_at) on public.strokes to authenticated;
grant insert (board) on public.clears to authenticated;

alter publication supabase_realtime add table public.strokes, public.clears;
