-- The latest run of a task, its definition if $2, and the state of the assignment that ended it.
select r.run, r.ended_as, r.agent_id, r.definition_hash, r.tokens, r.microdollars, r.head_seq, d.body, a.state as ended_state
from convoke.runs r
left join convoke.definitions d on $2::boolean and d.agent_id = r.agent_id and d.hash = r.definition_hash
left join convoke.assignments a on a.id = r.ended_by
where r.task_id = $1 order by r.run desc limit 1
