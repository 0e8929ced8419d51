update convoke.agents set status = 'gone' where kind <> 'remote' and status = 'present' and not id = any($1)
