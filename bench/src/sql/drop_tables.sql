drop table if exists public.bench_open, public.bench_secured, public.bench_rows;
do $$
begin
    if to_regclass('convoke.wal_position') is not null then
        delete from convoke.wal_position where slot like 'convoke\_bench%';
    end if;
end
$$
