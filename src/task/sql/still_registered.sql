select count(g.id) = coalesce(cardinality($1::text[]), 0) as same
from unnest($1::text[], $2::bigint[]) as i(id, incarnation)
join convoke.agents g on g.id = i.id and g.incarnation = i.incarnation and g.status = 'present'
