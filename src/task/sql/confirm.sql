with confirmed as (
    update convoke.assignments a set start_by = clock_timestamp() + i.start_ms * interval '1 ms'
    from unnest($1::uuid[], $2::bigint[]) as i(id, start_ms)
    where a.id = i.id and a.state = 'awarded'
    returning a.id, a.task_id, a.agent_id, a.epoch, a.start_by
),
moved as (
    update convoke.tasks t set due_at = c.start_by, updated_at = clock_timestamp(), version = t.version + 1
    from confirmed c where t.id = c.task_id
    returning t.id, t.org, t.round, c.agent_id, c.epoch, c.id as assignment_id, c.start_by
),
answered as (
    update convoke.offer_rows o set state = 'confirmed' from moved m
    where o.task_id = m.id and o.round = m.round and o.agent_id = m.agent_id
)
insert into convoke.events (org, task_id, agent_id, epoch, type, body)
select org, id, agent_id, epoch, 'confirmed', jsonb_build_object('assignment_id', assignment_id, 'start_by', start_by)
from moved
