-- Whether an agent has had an award in the tree of a task.
select exists (select from convoke.tasks t join convoke.assignments a on a.task_id = t.id
    where t.root_id = (select k.root_id from convoke.tasks k where k.id = $1) and a.agent_id = $2) as works_in_tree
