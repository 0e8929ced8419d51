-- Drains an agent ($2), or resumes it. A repeated command changes nothing and keeps the first person.
with moved as (
    update convoke.agents g set drained_at = case when $2::boolean then clock_timestamp() end,
        drained_by = case when $2::boolean then $3::text end
    where g.id = $1 and (g.drained_at is not null) <> $2::boolean
    returning g.id, g.org
)
insert into convoke.events (org, agent_id, type, body)
select org, id, case when $2::boolean then 'drained' else 'resumed' end, jsonb_build_object('by', $3::text) from moved
returning seq
