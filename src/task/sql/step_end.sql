-- Ends a call of a tool. A step that has ended stays as it is. $11 is 1 for a statement, which runs in this commit and
-- so uses its approval here.
with live as (
    select a.id, a.epoch from convoke.assignments a
    where a.id = $1 and a.task_id = $2 and a.epoch = $3 and a.agent_id = $4 and a.state = 'running'
    for share
)
update convoke.steps s set state = $7, result = $8, bytes = $9, cut = $10, ended_at = clock_timestamp(),
    began_at = coalesce(s.began_at, clock_timestamp()), tries = greatest(s.tries, $11), assignment_id = l.id,
    epoch = l.epoch,
    approval = case when $11 = 1 and s.approval = 'granted' then 'used' else s.approval end
from live l
where s.task_id = $2 and s.run = $5 and s.seq = $6 and s.kind = 'tool' and s.state in ('planned', 'started', 'unknown')
    and ($11 = 0 or s.approval is null or (s.approval = 'granted' and s.approval_expires_at > clock_timestamp()))
returning s.seq
