-- What each agent did in this run.
select a.agent_id, count(*) filter (where a.state = 'finished') as won,
    count(*) filter (where a.state not in ('finished', 'awarded', 'running')) as lost,
    (avg(extract(epoch from a.ended_at - a.started_at) * 1000) filter (where a.state = 'finished'))::float8 as ms,
    coalesce(sum((a.outcome ->> 'microdollars')::bigint), 0)::bigint as microdollars
from convoke.assignments a
join convoke.tasks k on k.id = a.task_id
where k.kind = 'support.triage' and k.created_at >= $1::timestamptz
group by a.agent_id
order by won desc, a.agent_id
