-- The tasks with used up rounds that wait on: at most for `policy.absence` in all, and only for a capable agent that is
-- expected, was present within that time, or offered and could not take its award.
select t.id from convoke.tasks t
join unnest($1::uuid[], $2::bigint[], $3::text[], $4::boolean[]) as i(task_id, absence_ms, agent, none_seen) on i.task_id = t.id
where t.id = any($1) and clock_timestamp() < coalesce(t.unattended_since, clock_timestamp()) + i.absence_ms * interval '1 ms'
    and exists (select from convoke.agents g
        where g.org = t.org and g.capabilities @> t.requires and g.id = coalesce(i.agent, g.id)
            and not g.id = any(t.unable) and case g.status
                when 'gone' then g.expected
                    or g.last_seen_at > clock_timestamp() - i.absence_ms * interval '1 ms'
                -- An agent that has arrived since the round was planned, or a hosted agent that refused: such a refusal
                -- is temporary, like a used up budget for the hour.
                else i.none_seen or g.kind <> 'remote' and exists (select from convoke.assignments a
                    where a.task_id = t.id and a.agent_id = g.id and a.state = 'refused') end)
