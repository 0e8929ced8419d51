delete from convoke.bursts b
where b.due_at is null and not exists (
    select from convoke.tasks t where t.id = b.task_id and t.state = 'open' and t.epoch = 0)
