-- Offers that the daemon computes are kept once, in the event of their award (decision 50), and not in a row for each
-- agent. `convoke.offer_rows` has the offers that agents make, and those of a computed round once one of them must
-- change by itself: its winner refused, or an offer came late. `convoke.offers` shows both.

alter table convoke.offers rename to offer_rows;
alter index convoke.offers_pkey rename to offer_rows_pkey;

-- The award of a task is found by its key, however many events of progress the task has.
create index events_awards on convoke.events (task_id) where type = 'awarded';

-- Offers in the events of awards, with the states that rows would have. `computed` marks such an event:
-- {valid_ms, incarnations}, one incarnation for each of `offers`. Numbers are limited, because an event may have been
-- written by hand.
create view convoke.computed_offers as
select md5(e.task_id || ':' || v.round || ':' || (o.offer ->> 'agent_id'))::uuid as id,
    e.task_id,
    v.round,
    o.offer ->> 'agent_id' as agent_id,
    v.incarnation,
    case
        when o.offer ->> 'agent_id' = e.agent_id then case
            when a.started_at is not null or a.start_by is not null then 'confirmed'
            when a.state in ('refused', 'confirm_timeout', 'start_timeout', 'lease_lost', 'canceled') then 'refused'
            else 'awarded' end
        when t.state in ('completed', 'failed', 'canceled') or exists (
            select from convoke.events r where r.task_id = e.task_id and r.seq > e.seq and r.type = 'requeued')
            then 'lost'
        else 'open'
    end as state,
    v.cost_microdollars,
    v.eta_ms,
    v.confidence,
    null::text as note,
    e.at + v.valid_ms * interval '1 ms' as valid_until,
    o.offer -> 'score' as score,
    e.at as offered_at,
    false as chosen
from convoke.events e
join convoke.tasks t on t.id = e.task_id
left join convoke.assignments a on a.task_id = e.task_id and a.epoch = e.epoch
cross join lateral jsonb_array_elements(
    case when jsonb_typeof(e.body -> 'offers') = 'array' then e.body -> 'offers' else '[]' end)
    with ordinality as o(offer, place)
cross join lateral (
    select least(greatest(i.round, 0), 2147483647)::integer as round,
        least(greatest(i.valid_ms, 0), 1e12)::bigint as valid_ms,
        least(greatest(i.incarnation, 0), 9007199254740991)::bigint as incarnation,
        least(greatest(i.cost, 0), 1e15)::bigint as cost_microdollars,
        least(greatest(i.eta_ms, 0), 1e15)::bigint as eta_ms,
        least(greatest(i.confidence, 0), 1)::real as confidence
    from (
        select case when jsonb_typeof(e.body -> 'round') = 'number' then (e.body ->> 'round')::numeric end as round,
            case when jsonb_typeof(e.body -> 'computed' -> 'valid_ms') = 'number'
                then (e.body -> 'computed' ->> 'valid_ms')::numeric end as valid_ms,
            case when jsonb_typeof(e.body -> 'computed' -> 'incarnations' -> (o.place - 1)::integer) = 'number'
                then (e.body -> 'computed' -> 'incarnations' ->> (o.place - 1)::integer)::numeric end as incarnation,
            case when jsonb_typeof(o.offer -> 'cost_microdollars') = 'number'
                then (o.offer ->> 'cost_microdollars')::numeric end as cost,
            case when jsonb_typeof(o.offer -> 'eta_ms') = 'number' then (o.offer ->> 'eta_ms')::numeric end as eta_ms,
            case when jsonb_typeof(o.offer -> 'confidence') = 'number'
                then (o.offer ->> 'confidence')::numeric end as confidence
    ) i
) v
where e.type = 'awarded' and e.body ? 'computed' and jsonb_typeof(o.offer -> 'agent_id') = 'string'
    and not exists (select from convoke.offer_rows r
        where r.task_id = e.task_id and r.round = v.round and r.agent_id = o.offer ->> 'agent_id');

-- Every offer, for everyone who could read the table of this name. A view reads with the rights of its owner, so the
-- condition of row security stands here, for the same roles.
create view convoke.offers with (security_barrier) as
select o.id, o.task_id, o.round, o.agent_id, o.incarnation, o.state, o.cost_microdollars, o.eta_ms, o.confidence,
    o.note, o.valid_until, o.score, o.offered_at, o.chosen
from (
    select id, task_id, round, agent_id, incarnation, state, cost_microdollars, eta_ms, confidence, note, valid_until,
        score, offered_at, chosen
    from convoke.offer_rows
    union all
    select id, task_id, round, agent_id, incarnation, state, cost_microdollars, eta_ms, confidence, note, valid_until,
        score, offered_at, chosen
    from convoke.computed_offers
) o
where not row_security_active('convoke.offer_rows'::regclass)
    or exists (select from convoke.tasks t where t.id = o.task_id and convoke.sees(t.org));

-- Roles that could read the table can read the view.
do $$
declare
    reader record;
begin
    for reader in
        select distinct case when a.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end as role
        from pg_class c cross join lateral aclexplode(c.relacl) a
        where c.oid = 'convoke.offer_rows'::regclass and a.privilege_type = 'SELECT' and a.grantee <> c.relowner
    loop
        execute format('grant select on convoke.offers to %s', reader.role);
    end loop;
end $$;

-- Whether a publication has the rows of offers: then every offer is written as a row, so that its changes are seen.
create function convoke.offers_are_published() returns boolean language sql stable set search_path = '' as $$
    select exists (
        select from pg_catalog.pg_publication p cross join lateral pg_catalog.pg_get_publication_tables(p.pubname) t
        where t.relid = 'convoke.offer_rows'::regclass)
$$;
revoke all on function convoke.offers_are_published from public;

-- As before, with the table and the view of offers.
create or replace function convoke.admit_observers(open_to_anon boolean default false) returns void language plpgsql as $$
declare
    readable text := 'convoke.tasks, convoke.offers, convoke.offer_rows, convoke.assignments, convoke.agents';
    role_name text;
begin
    for role_name in select rolname from pg_roles where rolname in ('anon', 'authenticated', 'service_role') loop
        if role_name = 'anon' and not open_to_anon then
            execute format('revoke select on %s from anon', readable);
            continue;
        end if;
        execute format('grant usage on schema convoke to %I', role_name);
        execute format('grant select on %s to %I', readable, role_name);
        execute format('grant execute on function convoke.sees to %I', role_name);
    end loop;
end $$;
revoke all on function convoke.admit_observers from public;

-- Makes the tables of the negotiation watchable by postgres_changes. Clients see `offer_rows` as `offers`.
create or replace function convoke.observe(publication text) returns void language plpgsql as $$
declare
    name text;
begin
    if not exists (select from pg_publication p where p.pubname = observe.publication and not p.puballtables) then
        return;
    end if;
    foreach name in array array['tasks', 'offer_rows', 'assignments', 'agents'] loop
        if not exists (select from pg_publication_tables p where p.pubname = observe.publication
            and p.schemaname = 'convoke' and p.tablename = name) then
            execute format('alter publication %I add table convoke.%I', observe.publication, name);
        end if;
    end loop;
end $$;
revoke all on function convoke.observe from public;

-- As before, in PL/pgSQL, which keeps its plan for the session; a function in SQL is planned anew by each statement.
create or replace function convoke.task_class(org text, requires text[]) returns bigint language plpgsql immutable as $$
begin
    return hashtextextended(org || E'\n' || coalesce((
        select string_agg(r, E'\n' order by r collate "C") from (select distinct unnest(requires) as r) as named), ''), 0);
end $$;
revoke all on function convoke.task_class from public;

-- Written out in the statement that used them.
drop function convoke.tenths(integer[]);
drop function convoke.added(bigint[], bigint[]);
