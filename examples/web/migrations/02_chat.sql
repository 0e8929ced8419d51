-- The chat: rows are the truth, broadcasts only hasten and decorate them.

create table public.messages (
  id bigint generated always as identity primary key,
  room text not null check (length(room) <= 100),
  author text not null default app.me() references public.people,
  -- Made by the page before it sends: a retry after a lost answer meets this row instead of making another.
  client_id uuid not null,
  body text not null check (length(body) between 1 and 20000),
  created_at timestamptz not null default clock_timestamp(),
  edited_at timestamptz,
  deleted_at timestamptz,
  unique (author, client_id)
);
create index messages_room on public.messages (room, id desc);
alter table public.messages enable row level security;

create policy "members read" on public.messages for select to authenticated using (app.reads('chat:' || room));
create policy "writers write as themselves" on public.messages for insert to authenticated
  with check (author = app.me() and app.writes('chat:' || room));
create policy "authors edit" on public.messages for update to authenticated
  using (author = app.me() and app.writes('chat:' || room)) with check (author = app.me());
grant select on public.messages to authenticated;
grant insert (room, client_id, body) on public.messages to authenticated;
grant update (body, deleted_at) on public.messages to authenticated;

-- Times are the database's: a page says that a message is edited or deleted, never when.
create function app.stamp_message() returns trigger language plpgsql set search_path = '' as $$
begin
  if old.deleted_at is not null then
    raise exception using errcode = '23514', message = 'a deleted message cannot be changed';
  end if;
  if new.deleted_at is not null then
    new.deleted_at := clock_timestamp();
    new.body := '-';
  elsif new.body is distinct from old.body then
    new.edited_at := clock_timestamp();
  end if;
  return new;
end $$;
create trigger stamp before update on public.messages for each row execute function app.stamp_message();

create table public.reactions (
  message_id bigint not null references public.messages on delete cascade,
  room text not null,
  user_id text not null default app.me() references public.people,
  emoji text not null check (length(emoji) between 1 and 16),
  primary key (message_id, user_id, emoji)
);
create index reactions_room on public.reactions (room, message_id);
-- So that a delete is told with its room, and to those who could see the row.
alter table public.reactions replica identity full;
alter table public.reactions enable row level security;
create policy "members read" on public.reactions for select to authenticated using (app.reads('chat:' || room));
create policy "react as yourself" on public.reactions for insert to authenticated
  with check (user_id = app.me() and app.writes('chat:' || room)
              and exists (select from public.messages m where m.id = message_id and m.room = reactions.room));
create policy "take back your own" on public.reactions for delete to authenticated using (user_id = app.me());
grant select, delete on public.reactions to authenticated;
grant insert (message_id, room, emoji) on public.reactions to authenticated;

alter publication supabase_realtime add table public.messages, public.reactions;
