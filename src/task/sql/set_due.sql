update convoke.tasks t
set due_at = least(coalesce(t.bids_close_at, 'infinity'), clock_timestamp() + i.due_ms * interval '1 ms')
from unnest($1::uuid[], $2::bigint[]) as i(task_id, due_ms)
where t.id = i.task_id and t.state not in ('completed', 'failed', 'canceled')
