select t.id, t.state from convoke.tasks t where t.id = any($1::uuid[]) and t.org = $2
