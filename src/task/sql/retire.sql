update convoke.agents set status = 'gone'
where status = 'present' and not id = any($1) and (kind <> 'remote' or node_id is distinct from $2::uuid)
