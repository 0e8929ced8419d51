select count(*)::bigint as answered, count(*) filter (where state = 'open')::bigint as offered
from convoke.offers where task_id = $1 and round = $2 and state in ('open', 'declined')
