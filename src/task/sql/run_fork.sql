-- Begins the run of the fork $1 with a copy of the steps of the run $3 of the task $2, up to the step $4. What they used
-- is not copied: it belongs to that task.
with forked as (
    insert into convoke.runs (task_id, run, agent_id, definition_hash, model, head_seq, forked_from, forked_at)
    select $1::uuid, r.run, r.agent_id, r.definition_hash, r.model, $4::integer, r.task_id, $4::integer
    from convoke.runs r where r.task_id = $2 and r.run = $3
    returning task_id, run
)
insert into convoke.steps (task_id, run, seq, kind, state, assignment_id, epoch, tries, began_at, ended_at, note_kind,
    note, request_sha256, last, model_said, finish, ending, answer, provider, model_asked, passed_over, after_seq, place,
    wire_id, name, args, args_sha256, effect, key, result, bytes, cut, asked_after, approval, approved_by,
    approval_expires_at, edited_args, edited_sha256, doubtful)
select f.task_id, f.run, s.seq, s.kind, s.state, s.assignment_id, s.epoch, s.tries, s.began_at, s.ended_at, s.note_kind,
    s.note, s.request_sha256, s.last, s.model_said, s.finish, s.ending, s.answer, s.provider, s.model_asked,
    s.passed_over, s.after_seq, s.place, s.wire_id, s.name, s.args, s.args_sha256, s.effect, s.key, s.result, s.bytes,
    s.cut, s.asked_after, s.approval, s.approved_by, s.approval_expires_at, s.edited_args, s.edited_sha256, s.doubtful
from forked f join convoke.steps s on s.task_id = $2 and s.run = f.run and s.seq <= $4
returning seq
