update convoke.tasks set followed = followed or id = any($1), has_children = has_children or id = any($2)
where (id = any($1) and not followed) or (id = any($2) and not has_children)
