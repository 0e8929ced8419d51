        select i.* from convoke.tasks i where i.id = any($7::uuid[])
