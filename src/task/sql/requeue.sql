with moved as (
    update convoke.tasks t set state = $2, state_reason = null, due_at = case when $2 = 'blocked' then clock_timestamp() end,
        bids_close_at = null, attempt = 0, rounds_empty = 0, tried = '{}', unable = '{}',
        unattended_since = null, outage_since = null, outages = 0, agent_id = null, prefer = null,
        rejected = null, question = null, result = null, error = null, cancel_requested_at = null,
        deadline_at = case when t.deadline_at > clock_timestamp() then t.deadline_at end,
        updated_at = clock_timestamp(), version = t.version + 1
    where t.id = $1 and t.state in ('failed', 'canceled')
    returning t.*
),
marked as (
    update convoke.tasks d set followed = true from moved m where d.id = any(m.depends_on) and not d.followed
),
-- In its thread it queues again, behind those that have come since.
unthreaded as (
    delete from convoke.thread_tasks e using moved m where e.task_id = m.id
),
logged as (
    insert into convoke.events (org, task_id, epoch, type, body)
    select org, id, epoch, 'requeued', jsonb_build_object('state', state, 'by', $3::text) from moved
)
select id, version, org, kind, state, state_reason, epoch, requester, agent_id from moved
