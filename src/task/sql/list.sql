with page as (
    select t.id, t.org, t.kind, t.requires, t.input, t.requester, t.state, t.state_reason, t.priority, t.round, t.epoch,
        t.attempt, t.attempts_max, t.agent_id, t.result, t.error, t.created_at, t.updated_at, t.deadline_at, t.version,
        t.run_at, t.parent_id, t.root_id, t.depends_on, t.question,
        (select jsonb_object_agg(case when b.tree then 'tree' else 'task' end, jsonb_build_object(
            'tokens', jsonb_build_object('max', b.tokens_max, 'reserved', b.tokens_reserved, 'spent', b.tokens_spent),
            'microdollars', jsonb_build_object('max', b.microdollars_max, 'reserved', b.microdollars_reserved,
                'spent', b.microdollars_spent)))
            from convoke.budgets b where b.task_id = t.id) as budget,
        (select a.progress from convoke.assignments a where a.task_id = t.id and a.epoch = t.epoch limit 1) as progress
    from convoke.tasks t
    where ($1::text is null or t.org = $1) and ($2::text is null or t.state = $2)
        and ($3::text is null or t.kind = $3) and ($4::uuid is null or t.id < $4)
    order by t.id desc limit $5
),
sized as (
    select page.*, row_number() over newest as place,
        sum(octet_length(input::text) + coalesce(octet_length(result::text), 0)) over newest as bytes
    from page window newest as (order by id desc)
)
-- The first row always, then as many as fit 16 MiB.
select * from sized where place = 1 or bytes <= 16777216 order by id desc
