-- The columns that explain what a task waits for.
select t.due_at, t.run_at, t.bids_close_at, t.unattended_since, t.outage_since, t.outages, t.verifier_id,
    case when t.state = 'blocked' then (
        select jsonb_agg(jsonb_build_object('id', d.id, 'kind', d.kind, 'state', d.state) order by d.id)
        from convoke.tasks d where d.id = any(t.depends_on) and d.state <> 'completed') end as depends_on,
    case when t.unattended_since is not null then (
        select jsonb_agg(g.id order by g.id) from (
            select a.id from convoke.agents a where a.org = t.org and a.capabilities @> t.requires
                and a.status = 'gone' order by a.id limit 20) g) end as away
from convoke.tasks t where t.id = $1
