with old as (
    select t.id from convoke.tasks t
    where t.id > $1
        -- Ids begin with their time, so only rows that may be old are read.
        and t.id < (lpad(to_hex((extract(epoch from clock_timestamp()) * 1000)::bigint - $2), 12, '0')
            || repeat('0', 20))::uuid
        and t.state in ('completed', 'failed', 'canceled')
        and t.updated_at < clock_timestamp() - $2 * interval '1 ms'
        and not t.followed and not (t.has_children and t.state <> 'completed')
        and not exists (select from convoke.tasks d where d.state = 'blocked' and d.depends_on @> array[t.id])
    order by t.id limit 500
    for update skip locked
),
events as (
    delete from convoke.events e using old where e.task_id = old.id
),
loose as (
    delete from convoke.events where seq in (
        select seq from convoke.events where task_id is null and at < clock_timestamp() - $2 * interval '1 ms'
        order by seq limit 500)
),
-- What the tasks used stays counted, without them.
uncounted as (
    delete from convoke.spend s using old where s.task_id = old.id returning s.*
),
counted as (
    insert into convoke.spend as s (org, hour, agent_id, kind, task_id, root_id, provider, model, attempts, questions,
        presumed, tokens, microdollars, presumed_microdollars, input_tokens, cached_tokens, written_tokens,
        output_tokens, reasoning_tokens)
    select u.org, u.hour, u.agent_id, u.kind, '00000000-0000-0000-0000-000000000000'::uuid,
        '00000000-0000-0000-0000-000000000000'::uuid, u.provider, u.model, sum(u.attempts), sum(u.questions),
        sum(u.presumed), sum(u.tokens), sum(u.microdollars), sum(u.presumed_microdollars), sum(u.input_tokens),
        sum(u.cached_tokens), sum(u.written_tokens), sum(u.output_tokens), sum(u.reasoning_tokens)
    from uncounted u group by 1, 2, 3, 4, 7, 8 order by 1, 2, 3, 4, 7, 8
    on conflict (org, hour, agent_id, kind, task_id, provider, model) do update set
        attempts = s.attempts + excluded.attempts, questions = s.questions + excluded.questions,
        presumed = s.presumed + excluded.presumed, tokens = s.tokens + excluded.tokens,
        microdollars = s.microdollars + excluded.microdollars,
        presumed_microdollars = s.presumed_microdollars + excluded.presumed_microdollars,
        input_tokens = s.input_tokens + excluded.input_tokens,
        cached_tokens = s.cached_tokens + excluded.cached_tokens,
        written_tokens = s.written_tokens + excluded.written_tokens,
        output_tokens = s.output_tokens + excluded.output_tokens,
        reasoning_tokens = s.reasoning_tokens + excluded.reasoning_tokens
)
delete from convoke.tasks t using old where t.id = old.id
returning t.id
