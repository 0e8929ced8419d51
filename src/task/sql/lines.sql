-- Tasks as lines of a list, newest first. The source is `lines_range.sql`, `lines_live.sql`, `lines_ids.sql` or
-- `lines_tree.sql`.
with page as (
    select t.*, n.needs from (
{source}
    ) t
    cross join lateral (select case
        when t.state = 'waiting' then coalesce(t.question ->> 'for', 'input')
        -- The award policy of the request, else of its kind ($11), else of all kinds ($12).
        when t.state = 'open' and t.bids_close_at is not null
            and coalesce(t.policy ->> 'award', $11::jsonb ->> t.kind, $12::text) = 'requester' then 'choice'
    end as needs) n
    where ($1::text is null or t.org = $1)
        and ($2::text[] is null or t.state = any($2))
        and ($3::text[] is null or t.kind like any($3))
        and ($4::text[] is null or not t.kind like any($4))
        and ($5::text[] is null or t.agent_id = any($5))
        and ($6::text is null or t.requester = $6)
        and ($7::uuid[] is null or t.id = any($7))
        and ($8::uuid is null or t.id >= $8)
        and ($9::uuid is null or t.id < $9)
        and ($13::text[] is null or n.needs = any($13))
        and ($14::uuid is null or t.root_id = $14)
    order by t.id desc limit $10::bigint
)
select jsonb_build_object(
    'id', t.id, 'org', t.org, 'kind', t.kind, 'state', t.state, 'state_reason', t.state_reason,
    'agent_id', t.agent_id, 'requester', t.requester, 'priority', t.priority, 'round', t.round, 'epoch', t.epoch,
    'attempt', t.attempt, 'attempts_max', t.attempts_max, 'version', t.version, 'created_at', t.created_at,
    'updated_at', t.updated_at, 'deadline_at', t.deadline_at, 'parent_id', t.parent_id, 'root_id', t.root_id,
    'depends_on', t.depends_on, 'microdollars', coalesce(paid.microdollars, 0),
    'question', left(t.question ->> 'question', 200), 'needs', t.needs,
    'input_preview', left(t.input::text, 120), 'error', left(t.error ->> 'message', 200),
    'progress', held.progress, 'activity', left(held.activity, 120),
    'offers', coalesce(bids.offers, 0), 'score', bids.score, 'runner_up', bids.runner_up
) as line
from page t
left join lateral (
    select a.progress, a.activity from convoke.assignments a where a.task_id = t.id and a.ended_at is null limit 1
) held on true
left join lateral (
    -- A charge has the latest figure; without one the outcome has it, where a hand may have written anything.
    select sum(coalesce(c.microdollars, case when jsonb_typeof(b.outcome -> 'microdollars') = 'number'
        then least(greatest((b.outcome ->> 'microdollars')::numeric, 0), 9e15) end))::float8 as microdollars
    from convoke.assignments b left join convoke.charges c on c.assignment_id = b.id where b.task_id = t.id
) paid on true
left join lateral (
    -- A total that was written by hand may be anything; a double cannot hold every number.
    select count(*) as offers, max(o.total) filter (where o.agent_id = t.agent_id) as score,
        max(o.total) filter (where o.agent_id is distinct from t.agent_id) as runner_up
    from (
        select f.agent_id, case when jsonb_typeof(f.score -> 'total') = 'number'
            then greatest(least((f.score ->> 'total')::numeric, 1e9), -1e9)::float8 end as total
        from convoke.offers f where f.task_id = t.id and f.round = t.round and f.state <> 'declined'
    ) o
) bids on true
order by t.id desc
