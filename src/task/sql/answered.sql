-- Agents that were asked, are present ($3) and have not answered. The round does not wait for others.
select (
    select count(*)::bigint from convoke.events e
    cross join lateral jsonb_array_elements_text(e.body -> 'eligible') as asked(agent_id)
    where e.task_id = $1 and e.type = 'announced' and e.body -> 'round' = to_jsonb($2::integer)
        and asked.agent_id = any($3) and not exists (
            select from convoke.offer_rows o where o.task_id = $1 and o.round = $2 and o.agent_id = asked.agent_id
                and o.state in ('open', 'declined', 'withdrawn'))
) as silent, (
    select count(*)::bigint from convoke.offer_rows where task_id = $1 and round = $2 and state = 'open'
) as offered
