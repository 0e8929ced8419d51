-- Roles of tokens as which the daemon may not act: Supabase's, and those in policies of published tables.
with published as (
    select distinct c.oid
    from pg_publication_tables p
    join pg_namespace n on n.nspname = p.schemaname
    join pg_class c on c.relnamespace = n.oid and c.relname = p.tablename
    where p.pubname = $1
)
select
    array(
        select r.rolname::text
        from pg_roles r
        where (
                r.rolname in ('anon', 'authenticated', 'service_role')
                or r.oid in (
                    select unnest(y.polroles)
                    from pg_policy y
                    join published p on p.oid = y.polrelid
                    where y.polcmd in ('r', '*')
                )
            )
            and not pg_has_role(current_user, r.oid, 'member')
        order by 1
    ) as refused,
    -- The migrations create these roles if they may.
    array(
        select name
        from unnest(array['anon', 'authenticated', 'service_role']) name
        where to_regclass('convoke.tasks') is not null
            and not exists (select from pg_roles r where r.rolname = name)
        order by 1
    ) as missing,
    array(
        select c.oid::regclass::text
        from published p
        join pg_class c on c.oid = p.oid
        where c.relrowsecurity and c.relreplident <> 'f'
        order by 1
    ) as partial,
    quote_ident(current_user) as daemon
