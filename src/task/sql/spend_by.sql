-- What was used in the hour of $2 and later, by the dimensions $3, of all orgs or one ($1).
with grouped as (
    select case when 'hour' = any($3::text[]) then s.hour end as hour,
        case when 'day' = any($3) then (s.hour at time zone 'UTC')::date end as day,
        case when 'org' = any($3) then s.org end as org,
        case when 'agent' = any($3) then s.agent_id end as agent_id,
        case when 'kind' = any($3) then s.kind end as kind,
        case when 'task' = any($3) then nullif(s.task_id, '00000000-0000-0000-0000-000000000000') end as task_id,
        case when 'tree' = any($3) then nullif(s.root_id, '00000000-0000-0000-0000-000000000000') end as root_id,
        case when 'provider' = any($3) then s.provider end as provider,
        case when 'model' = any($3) then s.model end as model,
        sum(s.attempts) as attempts, sum(s.questions) as questions, sum(s.presumed) as presumed,
        sum(s.tokens) as tokens, sum(s.microdollars) as microdollars,
        sum(s.presumed_microdollars) as presumed_microdollars, sum(s.input_tokens) as input_tokens,
        sum(s.cached_tokens) as cached_tokens, sum(s.written_tokens) as written_tokens,
        sum(s.output_tokens) as output_tokens, sum(s.reasoning_tokens) as reasoning_tokens
    from convoke.spend s
    where ($1::text is null or s.org = $1) and s.hour >= date_trunc('hour', $2::timestamptz, 'UTC')
    group by 1, 2, 3, 4, 5, 6, 7, 8, 9 order by microdollars desc, tokens desc limit 10001
)
select jsonb_strip_nulls(to_jsonb(g)) as row from grouped g
