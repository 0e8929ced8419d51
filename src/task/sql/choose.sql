with others as (
    update convoke.offer_rows set chosen = false
    where task_id = $1 and round = $2 and agent_id <> $3 and chosen
),
one as (
    update convoke.offer_rows o set chosen = true
    where o.task_id = $1 and o.round = $2 and o.agent_id = $3 and o.state = 'open'
        and o.valid_until > clock_timestamp()
    returning o.task_id
)
insert into convoke.events (org, task_id, agent_id, epoch, type, body)
select t.org, t.id, $3, t.epoch, 'chosen', jsonb_build_object('round', $2::integer, 'by', $4::text)
from one join convoke.tasks t on t.id = one.task_id
returning seq
