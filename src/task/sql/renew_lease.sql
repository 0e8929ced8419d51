with input as (
    select * from unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::text[], $5::boolean[], $6::real[], $7::text[],
        $8::jsonb[])
    as i(task_id, assignment_id, epoch, agent_id, evidence, progress, activity, checkpoint)
),
renewed as (
    update convoke.assignments a set
        -- While it waits there is no lease to renew.
        lease_until = case when a.state = 'running' then clock_timestamp() + a.lease_ms * interval '1 ms' end,
        logged_at = case when i.evidence and coalesce(a.logged_at < clock_timestamp() - interval '1 second', true)
            then clock_timestamp() else a.logged_at end,
        progress_at = case when i.evidence then clock_timestamp() else a.progress_at end,
        progress = coalesce(i.progress, a.progress),
        activity = coalesce(i.activity, a.activity),
        checkpoint = coalesce(i.checkpoint, a.checkpoint)
    from input i
    where a.id = i.assignment_id and a.task_id = i.task_id and a.epoch = i.epoch and a.agent_id = i.agent_id
        and (a.state = 'waiting' or (a.state = 'running' and a.lease_until > clock_timestamp()))
    returning a.id, a.task_id, a.agent_id, a.epoch, i.evidence, i.progress, i.activity, i.checkpoint,
        a.logged_at >= statement_timestamp() as log
),
logged as (
    insert into convoke.events (org, task_id, agent_id, epoch, type, body)
    select t.org, r.task_id, r.agent_id, r.epoch, 'progress', jsonb_strip_nulls(jsonb_build_object(
        'progress', r.progress, 'activity', r.activity, 'checkpoint_bytes', octet_length(r.checkpoint::text)))
    from renewed r join convoke.tasks t on t.id = r.task_id where r.evidence and r.log
)
select id from renewed
