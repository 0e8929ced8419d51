-- Records a question to a model before it is sent, with the most that it may use ($9 tokens, $10 microdollars). No row
-- if the assignment is over, or if it has not begun the step ($6, $7) of the question.
with live as (
    select a.id, a.task_id, a.agent_id from convoke.assignments a
    where a.id = $1 and a.task_id = $2 and a.epoch = $3 and a.agent_id = $4 and a.state = 'running'
        -- What a call of a tool may cost is recorded before it begins.
        and ($6::integer is null or exists (select from convoke.steps s where s.task_id = $2 and s.run = $6
            and s.seq = $7::integer and (s.kind = 'tool' or (s.assignment_id = a.id and s.state = 'started'))))
    for share
),
-- Of one assignment, only one question of a step is under way: an earlier one was recorded and never sent.
unsent as (
    delete from convoke.model_questions q using live
    where q.assignment_id = live.id and q.state = 'sent' and q.run is not distinct from $6::integer
        and q.seq is not distinct from $7::integer and q.id <> $5::uuid
    returning q.task_id, q.provider, q.microdollars, (q.asked_at at time zone 'UTC')::date as day
),
unheld as (
    update convoke.allowances a set microdollars = a.microdollars - u.microdollars
    from unsent u join convoke.tasks t on t.id = u.task_id
    where a.day = u.day
        and ((a.scope = 'provider' and a.name = u.provider) or (a.scope = 'org' and a.name = t.org))
)
insert into convoke.model_questions as q
    (id, task_id, assignment_id, agent_id, run, seq, provider, model, price_from, state, tokens, microdollars)
select $5, live.task_id, live.id, live.agent_id, $6, $7, $8, $11, $12::date, 'sent', $9::bigint, $10::bigint from live
-- The same commit again, after its answer was lost.
on conflict (id) do update set state = q.state
returning q.id
