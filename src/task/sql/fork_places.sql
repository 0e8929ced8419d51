-- The steps of a run that a fork can begin behind: a question to the model comes next. These are notes, and the last call
-- of an answer, if all steps up to it have ended, unless the run ended with a result or its reason to give up there.
select s.seq from convoke.steps s join convoke.runs r on r.task_id = s.task_id and r.run = s.run
where s.task_id = $1 and s.run = $2
    and (s.kind = 'note' or s.kind = 'tool' and not exists (
        select from convoke.steps x where x.task_id = s.task_id and x.run = s.run and x.after_seq = s.after_seq and x.seq > s.seq))
    and not exists (select from convoke.steps x where x.task_id = s.task_id and x.run = s.run and x.seq <= s.seq
        and x.state not in ('done', 'failed', 'denied', 'skipped'))
    and (s.kind = 'note' or s.seq < r.head_seq or r.ended_as is null or r.ended_as not in ('finish', 'give_up'))
order by s.seq
