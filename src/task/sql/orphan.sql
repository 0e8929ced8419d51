with spent as (
    update convoke.assignments a set outcome = coalesce(a.outcome, '{}') || jsonb_build_object('orphan_tokens', $4::bigint,
        'orphan_microdollars', $5::bigint)
    where a.id = $2 and a.task_id = $1 and a.agent_id = $3 and a.state not in ('awarded', 'running', 'waiting')
        -- Once: a repeated report is neither logged nor charged again.
        and not coalesce(a.outcome, '{}') ? 'orphan_tokens'
    returning a.task_id, a.agent_id, a.epoch
)
insert into convoke.events (org, task_id, agent_id, epoch, type, body)
select t.org, t.id, s.agent_id, s.epoch, 'orphan_result', $6::jsonb
from spent s join convoke.tasks t on t.id = s.task_id
