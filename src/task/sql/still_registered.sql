select count(g.id) = coalesce(cardinality($1::text[]), 0) as same
from convoke.agents g where g.id = any($1) and g.node_id = $2::uuid and g.status = 'present'
