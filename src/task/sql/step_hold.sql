-- Records that calls may not begin before a person approves them. $7 is how many answers the task has.
with live as (
    select a.id, a.epoch from convoke.assignments a
    where a.id = $1 and a.task_id = $2 and a.epoch = $3 and a.agent_id = $4 and a.state = 'running'
    for share
)
update convoke.steps s set approval = 'asked', asked_after = $7, approved_by = null, approval_expires_at = null,
    edited_args = null, edited_sha256 = null, assignment_id = l.id, epoch = l.epoch
from live l
where s.task_id = $2 and s.run = $5 and s.seq = any($6) and s.kind = 'tool' and s.state = 'planned'
returning s.seq
