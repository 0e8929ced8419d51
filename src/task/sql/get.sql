select t.id, t.org, t.kind, t.requires, t.input, t.requester, t.state, t.state_reason, t.priority, t.round, t.epoch,
    t.attempt, t.attempts_max, t.agent_id, t.result, t.error, t.created_at, t.updated_at, t.deadline_at, t.version,
    t.run_at, t.parent_id, t.root_id, t.depends_on, t.question,
    (select jsonb_object_agg(case when b.tree then 'tree' else 'task' end, jsonb_build_object(
        'tokens', jsonb_build_object('max', b.tokens_max, 'reserved', b.tokens_reserved, 'spent', b.tokens_spent),
        'microdollars', jsonb_build_object('max', b.microdollars_max, 'reserved', b.microdollars_reserved,
            'spent', b.microdollars_spent)))
        from convoke.budgets b where b.task_id = t.id) as budget,
    (select a.progress from convoke.assignments a where a.task_id = t.id and a.epoch = t.epoch limit 1) as progress
from convoke.tasks t where t.id = $1
