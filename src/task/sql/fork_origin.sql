-- What a fork of a task begins with: its policy, and the run $2, or else the latest one. No row if there is none.
select t.policy, r.run, r.agent_id from convoke.tasks t join convoke.runs r on r.task_id = t.id
where t.id = $1 and ($2::integer is null or r.run = $2)
order by r.run desc limit 1
