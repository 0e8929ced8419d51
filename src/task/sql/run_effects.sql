-- Effects of earlier runs of a task: those that happened, and those of which it is unknown. Those of copied steps belong
-- to the task that they come from.
select s.name, coalesce(s.edited_sha256, s.args_sha256) as args_sha256, case s.state when 'done' then 'done' else 'unknown' end as state, s.result
from convoke.steps s join convoke.runs r on r.task_id = s.task_id and r.run = s.run
where s.task_id = $1 and s.run < $2 and s.kind = 'tool' and s.effect <> 'read' and s.tries > 0
    and (r.forked_at is null or s.seq > r.forked_at)
    and (s.state in ('done', 'started', 'unknown') or s.doubtful)
order by s.run, s.seq
