-- The steps of these tasks that have ended, but notes, with the usage of their last question. Copied steps are in the trace of
-- the task that they come from. Contents only if $2.
select s.task_id, s.run, s.seq, s.kind, s.state, s.assignment_id, s.began_at, s.ended_at, s.provider, s.model_asked,
    s.model_said, s.finish, s.name, s.wire_id, s.effect, s.microdollars, q.input_tokens, q.cached_tokens, q.written_tokens,
    q.output_tokens, q.reasoning_tokens, case when $2 then s.answer end as answer,
    case when $2 then coalesce(s.edited_args, s.args) end as args, case when $2 then s.result end as result
from convoke.steps s
left join lateral (
    select q.* from convoke.model_questions q
    where q.task_id = s.task_id and q.run = s.run and q.seq = s.seq and q.state = 'exact'
    order by q.asked_at desc limit 1
) q on s.kind = 'model'
where s.task_id = any($1::uuid[]) and s.kind <> 'note' and s.began_at is not null and s.ended_at is not null
    and not exists (select from convoke.runs r where r.task_id = s.task_id and r.run = s.run and s.seq <= r.forked_at)
order by s.task_id, s.run, s.seq
