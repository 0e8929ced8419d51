-- Begins a question to the model: a new step after $6, or another try of the step $7.
with live as (
    select a.id, a.epoch from convoke.assignments a
    where a.id = $1 and a.task_id = $2 and a.epoch = $3 and a.agent_id = $4 and a.state = 'running'
        -- A crash of Postgres may have lost a result that the question contains: its call is open again.
        and not exists (select from convoke.steps s where s.task_id = $2 and s.run = $5 and s.kind = 'tool'
            and s.state in ('planned', 'started', 'unknown')
            and s.seq > coalesce((select m.seq from convoke.steps m where m.task_id = $2 and m.run = $5
                and m.kind = 'model' order by m.seq desc limit 1), 0))
    for share
),
head as (
    update convoke.runs r set head_seq = r.head_seq + 1
    from live where $7::integer is null and r.task_id = $2 and r.run = $5 and r.head_seq = $6
    returning r.head_seq
),
begun as (
    insert into convoke.steps
        (task_id, run, seq, kind, state, assignment_id, epoch, tries, began_at, request_sha256, last, provider,
        model_asked, passed_over)
    select $2, $5, h.head_seq, 'model', 'started', l.id, l.epoch, 1, clock_timestamp(), $8::text, $9::boolean,
        $10::text, $11::text, $12::text
    from head h cross join live l
    returning seq
),
-- Another model of the list is no other try: a step is poison after so many tries, each of which ended with a death.
again as (
    update convoke.steps s set tries = s.tries + case when s.assignment_id = l.id and $12::text is not null then 0 else 1 end,
        assignment_id = l.id, epoch = l.epoch, began_at = clock_timestamp(), request_sha256 = $8::text,
        provider = $10::text, model_asked = $11::text, passed_over = coalesce($12::text, s.passed_over)
    from live l
    where s.task_id = $2 and s.run = $5 and s.seq = $7::integer and s.kind = 'model' and s.state = 'started'
    returning s.seq
)
select seq from begun union all select seq from again
