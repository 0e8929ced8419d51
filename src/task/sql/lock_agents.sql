select id from convoke.agents where id = any($1) order by id for no key update
