select * from (
    select t.id, false as child, '' as why from convoke.tasks t
    where t.state = 'blocked' and t.depends_on && $1
    union
    select t.id, false, '' from convoke.tasks t
    where t.id = any(array(select v.parent_id from convoke.tasks v where v.id = any($1)))
        and t.state = 'verifying' and t.verifier_id = any($1)
    union
    select c.id, true, p.state from convoke.tasks c join convoke.tasks p on p.id = c.parent_id
    where c.parent_id = any($2) and not c.detached
        and c.state not in ('canceling', 'completed', 'failed', 'canceled')
) found
-- With two reasons for one task the last row counts, which cancels it.
order by id, child limit $3
