-- The present state of tasks that changed, for the digests of dashboards. Texts that were written by hand may be long.
select t.id, t.org, jsonb_build_object('id', t.id, 'version', t.version, 'kind', left(t.kind, 60), 'state', t.state,
    'state_reason', left(t.state_reason, 60), 'agent_id', left(t.agent_id, 100), 'epoch', t.epoch,
    'progress', a.progress) as line
from convoke.tasks t left join convoke.assignments a on a.task_id = t.id and a.ended_at is null
where t.id = any($1::uuid[])
