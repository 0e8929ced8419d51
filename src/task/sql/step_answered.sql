-- Ends a question with its answer and appends its calls, in one statement: there is no call without a row.
with live as (
    select a.id, a.epoch from convoke.assignments a
    where a.id = $1 and a.task_id = $2 and a.epoch = $3 and a.agent_id = $4 and a.state = 'running'
    for share
),
head as (
    update convoke.runs r set head_seq = r.head_seq + cardinality($15::text[]), tokens = r.tokens + $11,
        microdollars = r.microdollars + $12
    from live where r.task_id = $2 and r.run = $5 and r.head_seq = $6
    returning r.head_seq
),
answered as (
    update convoke.steps s set state = 'done', ended_at = clock_timestamp(), answer = $7, ending = $8, finish = $9,
        model_said = $10, tokens = $11, microdollars = $12, presumed = $13, request_id = $22::text
    from live cross join head
    where s.task_id = $2 and s.run = $5 and s.seq = $14 and s.kind = 'model' and s.state = 'started'
        and s.assignment_id = live.id
    returning s.seq
),
called as (
    insert into convoke.steps (task_id, run, seq, kind, state, assignment_id, epoch, ended_at, after_seq, place,
        wire_id, name, args, args_sha256, effect, key, result)
    select $2, $5, $6 + c.place::integer, 'tool', c.state, l.id, l.epoch,
        case when c.state <> 'planned' then clock_timestamp() end, a.seq, c.place::integer - 1, c.wire_id, c.name,
        c.args, c.args_sha256, c.effect,
        'cv_' || left(encode(sha256(convert_to($2::text || ':' || $5::text || ':' || ($6 + c.place)::text, 'UTF8')),
            'hex'), 40), c.result
    from live l cross join answered a cross join unnest($15::text[], $16::text[], $17::text[], $18::json[],
        $19::text[], $20::text[], $21::text[]) with ordinality
        as c(state, wire_id, name, args, args_sha256, effect, result, place)
    returning seq
)
select seq from answered
