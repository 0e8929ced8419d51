-- The parts of a task, oldest first. A result that is longer than a model is shown is left out.
select t.id, t.kind, t.state, t.state_reason,
    case when octet_length(t.result::text) <= 16384 then t.result end as result,
    coalesce(octet_length(t.result::text) > 16384, false) as too_long
from convoke.tasks t where t.parent_id = $1
order by t.id limit $2
