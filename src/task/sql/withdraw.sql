update convoke.offer_rows o set state = 'open'
from unnest($1::uuid[], $2::integer[]) as i(task_id, round)
where o.task_id = i.task_id and o.round = i.round and o.state = 'awarded'
