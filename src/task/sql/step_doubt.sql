-- Ends a call of a tool, without knowing whether it had its effect.
with live as (
    select a.id, a.epoch from convoke.assignments a
    where a.id = $1 and a.task_id = $2 and a.epoch = $3 and a.agent_id = $4 and a.state = 'running'
    for share
)
update convoke.steps s set state = 'failed', doubtful = true, result = $7, bytes = $8, cut = $9,
    ended_at = clock_timestamp(), assignment_id = l.id, epoch = l.epoch
from live l
where s.task_id = $2 and s.run = $5 and s.seq = $6 and s.kind = 'tool' and s.state in ('started', 'unknown')
returning s.seq
