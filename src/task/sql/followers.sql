select * from (
    select t.id, false as child, '' as why from convoke.tasks t
    where t.state = 'blocked' and t.depends_on && $1
    union
    select t.id, false, '' from convoke.tasks v join convoke.tasks t on t.id = v.parent_id
    where v.id = any($1) and t.state = 'verifying' and t.verifier_id = v.id
    union
    select c.id, true, p.state from convoke.tasks c join convoke.tasks p on p.id = c.parent_id
    where c.parent_id = any($2) and not c.detached
        and c.state not in ('canceling', 'completed', 'failed', 'canceled')
) found
-- Of two reasons for one task the last counts: nothing follows in a task that is canceled.
order by id, child limit $3
