-- Begins the next run of a task with its first note. No row if the assignment is over.
with live as (
    select a.id, a.task_id, a.epoch, a.agent_id from convoke.assignments a
    where a.id = $1 and a.task_id = $2 and a.epoch = $3 and a.agent_id = $4 and a.state = 'running'
    for share
),
pinned as (
    insert into convoke.definitions (agent_id, hash, body) select agent_id, $5::text, $6::json from live
    on conflict (agent_id, hash) do nothing
),
begun as (
    insert into convoke.runs (task_id, run, agent_id, definition_hash, model, head_seq)
    select l.task_id, coalesce((select max(r.run) from convoke.runs r where r.task_id = l.task_id), 0) + 1,
        l.agent_id, $5::text, $7::text, 1
    from live l
    returning task_id, run
)
insert into convoke.steps (task_id, run, seq, kind, state, assignment_id, epoch, began_at, ended_at, note_kind, note)
select b.task_id, b.run, 1, 'note', 'done', l.id, l.epoch, clock_timestamp(), clock_timestamp(), 'input', $8::text
from begun b cross join live l
returning run
