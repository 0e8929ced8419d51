        -- Every unfinished task has a due time, is ready, has a live assignment or waits for others: each has an index
        -- without finished tasks.
        select l.* from convoke.tasks l where l.id = any(array(
            select d.id from convoke.tasks d where d.due_at is not null
            union select o.id from convoke.tasks o where o.state = 'open' and o.due_at is null
            union select a.task_id from convoke.assignments a where a.ended_at is null
            union select b.id from convoke.tasks b where b.state = 'blocked' and b.depends_on @> '{}'
            limit 100000
        ))
