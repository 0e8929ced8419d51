insert into convoke.events (org, task_id, agent_id, epoch, type, body)
select org, id, agent_id, epoch, 'escalated', question from convoke.tasks where id = any($1) and state = 'waiting'
