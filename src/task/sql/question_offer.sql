-- Records a question about an offer for a task.
insert into convoke.model_questions (id, task_id, agent_id, provider, model, state, tokens, microdollars)
select $1, t.id, $3, $4, $5, 'sent', 0, 0 from convoke.tasks t where t.id = $2
