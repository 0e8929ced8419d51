update convoke.tasks set followed = followed and not id = any($1), has_children = has_children and not id = any($2)
where id = any($1) or id = any($2)
