-- What the researcher may read: a table, and a login role that can select from it and do nothing else.
create table if not exists public.bridges (name text primary key, built integer not null, load_tons integer not null);
insert into public.bridges values ('Mill bridge', 1931, 24), ('North bridge', 1967, 40), ('Station bridge', 2004, 60)
on conflict do nothing;
do $$ begin
    create role research_reader login;
exception when duplicate_object or unique_violation then null;
end $$;
grant select on public.bridges to research_reader;
