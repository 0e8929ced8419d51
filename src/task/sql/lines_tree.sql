        -- The root and all below it, one level after the other; `limit` ends the recursion.
        select x.* from convoke.tasks x where x.id = any(array(
            with recursive tree (id) as (
                select $14::uuid union all select k.id from tree join convoke.tasks k on k.parent_id = tree.id
            )
            select tree.id from tree limit 500
        ))
