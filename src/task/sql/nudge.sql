with nudged as (
    update convoke.assignments set nudged_at = clock_timestamp() where id = any($1) and state = 'running'
    returning id, task_id, agent_id, epoch
)
insert into convoke.events (org, task_id, agent_id, epoch, type, body)
select t.org, n.task_id, n.agent_id, n.epoch, 'nudged', jsonb_build_object('assignment_id', n.id)
from nudged n join convoke.tasks t on t.id = n.task_id
