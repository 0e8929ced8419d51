select t.id, v.state as verifier_state, v.result as verdict,
    coalesce(bool_and(d.state in ('completed', 'failed', 'canceled')) filter (where d.id is not null), true) as all_ended,
    coalesce(bool_or(d.state in ('failed', 'canceled')), false) as one_failed
from convoke.tasks t
left join convoke.tasks v on v.id = t.verifier_id
left join convoke.tasks d on t.state = 'blocked' and d.id = any(t.depends_on)
where t.id = any($1)
group by t.id, v.id
