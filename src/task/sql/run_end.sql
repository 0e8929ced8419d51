-- Records how a run ended, and with which assignment: a repeated end moves it to the assignment of now.
with live as (
    select a.id from convoke.assignments a
    where a.id = $1 and a.task_id = $2 and a.epoch = $3 and a.agent_id = $4 and a.state = 'running'
    for share
)
update convoke.runs r set ended_as = $6, ended_by = l.id, ended_at = clock_timestamp()
from live l where r.task_id = $2 and r.run = $5
returning r.run
