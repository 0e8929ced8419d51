select t.id, jsonb_build_object('org', t.org, 'kind', t.kind, 'requires', to_jsonb(t.requires), 'requester', t.requester,
    'priority', t.priority, 'input', t.input, 'policy', t.policy, 'attempts_max', t.attempts_max,
    'root_id', t.root_id, 'state', t.state, 'reason', t.state_reason, 'round', t.round, 'epoch', t.epoch,
    'attempt', t.attempt, 'agent_id', t.agent_id, 'result', t.result, 'error', t.error,
    'assignments', coalesce((
        select jsonb_object_agg(a.id, jsonb_build_object('epoch', a.epoch, 'agent_id', a.agent_id, 'state', a.state))
        from convoke.assignments a where a.task_id = t.id), '{}')) as row
from convoke.tasks t where t.id > $1 order by t.id limit $2
