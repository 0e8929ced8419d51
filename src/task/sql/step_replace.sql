-- Ends a question that its endpoint refused as too large, and appends a note. The question is the last step.
with live as (
    select a.id, a.epoch from convoke.assignments a
    where a.id = $1 and a.task_id = $2 and a.epoch = $3 and a.agent_id = $4 and a.state = 'running'
    for share
),
head as (
    update convoke.runs r set head_seq = r.head_seq + 1
    from live where r.task_id = $2 and r.run = $5 and r.head_seq = $6
    returning r.head_seq
),
refused as (
    update convoke.steps s set state = 'failed', ended_at = clock_timestamp()
    from live cross join head
    where s.task_id = $2 and s.run = $5 and s.seq = $6 and s.kind = 'model' and s.state = 'started'
        and s.assignment_id = live.id
    returning s.seq
)
insert into convoke.steps (task_id, run, seq, kind, state, assignment_id, epoch, began_at, ended_at, note_kind, note)
select $2, $5, h.head_seq, 'note', 'done', l.id, l.epoch, clock_timestamp(), clock_timestamp(), $7::text, $8::text
from head h cross join live l cross join refused
returning seq
