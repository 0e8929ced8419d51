select id, followed and state <> 'canceling' as followed, has_children and state <> 'completed' as cascades
from convoke.tasks
where id in (
    (select id from convoke.tasks where followed and state in ('completed', 'failed', 'canceled') order by id limit 200)
    union all
    (select id from convoke.tasks where has_children and state in ('canceling', 'failed', 'canceled') order by id limit 200))
order by id for update skip locked
