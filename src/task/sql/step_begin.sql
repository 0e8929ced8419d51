-- Begins calls of tools, records that the outcome of one is unknown, or that a person is asked ($7 is the new state).
with live as (
    select a.id, a.epoch from convoke.assignments a
    where a.id = $1 and a.task_id = $2 and a.epoch = $3 and a.agent_id = $4 and a.state = 'running'
    for share
)
update convoke.steps s set state = $7, approval = case when $7 = 'started' and s.approval = 'granted' then 'used' else s.approval end,
    tries = s.tries + case when $7 = 'started' then 1 else 0 end,
    assignment_id = l.id, epoch = l.epoch, asked_after = coalesce($8, s.asked_after),
    began_at = case when $7 = 'started' then clock_timestamp() else s.began_at end
from live l
where s.task_id = $2 and s.run = $5 and s.seq = any($6) and s.kind = 'tool'
    and s.state in ('planned', 'started', 'unknown')
    -- A call that needs an approval uses it up when it begins. A person who says that a call of unknown outcome did not
    -- happen approves that it begins again.
    and ($7 <> 'started' or s.approval is null or (s.approval = 'used' and s.state = 'unknown')
        or (s.approval = 'granted' and s.approval_expires_at > clock_timestamp()))
returning s.seq
