-- The steps of a task as people read them. Contents only if $2.
select r.run, r.agent_id, r.model, r.definition_hash, r.ended_as, r.started_at as run_started_at,
    r.ended_at as run_ended_at, r.forked_from, r.forked_at, t.traceparent, r.tokens as run_tokens, r.microdollars as run_microdollars,
    s.seq, s.kind, s.state, s.tries, s.began_at, s.ended_at, s.note_kind, s.last, s.model_said, s.provider,
    s.model_asked, s.passed_over, s.finish, s.ending,
    s.tokens, s.microdollars, s.presumed, s.after_seq, s.name, s.effect, s.key, s.bytes, s.cut, s.request_sha256, s.request_id,
    s.doubtful, s.approval, s.approved_by, s.approval_expires_at, coalesce(s.edited_sha256, s.args_sha256) as args_sha256,
    case when $2 then s.note end as note, case when $2 then s.answer end as answer,
    case when $2 then s.args end as args, case when $2 then s.edited_args end as edited_args, case when $2 then s.result end as result
from convoke.runs r join convoke.steps s on s.task_id = r.task_id and s.run = r.run
    join convoke.tasks t on t.id = r.task_id
where r.task_id = $1 order by r.run, s.seq limit $3
