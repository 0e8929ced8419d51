with expired as (
    update convoke.offer_rows o set state = 'expired' from convoke.tasks t
    where t.id = any($1) and o.task_id = t.id and o.round = t.round and o.state = 'open'
        and o.valid_until <= clock_timestamp()
)
select o.task_id, o.round, o.agent_id, o.incarnation, o.cost_microdollars, o.eta_ms, o.confidence, o.chosen,
    row_number() over (partition by o.task_id order by o.offered_at, o.agent_id) - 1 as arrival
from convoke.tasks t join convoke.offer_rows o on o.task_id = t.id and o.round = t.round
where t.id = any($1) and o.state = 'open' and o.valid_until > clock_timestamp()
