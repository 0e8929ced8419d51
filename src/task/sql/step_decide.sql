-- Records what a person ($6) decided, at $7, about calls that wait for an approval. One that is not approved has ended.
with live as (
    select a.id, a.epoch from convoke.assignments a
    where a.id = $1 and a.task_id = $2 and a.epoch = $3 and a.agent_id = $4 and a.state = 'running'
    for share
),
decided as (
    select * from unnest($8::integer[], $9::boolean[], $10::json[], $11::text[], $12::text[], $13::bigint[])
    as i(seq, approved, edited_args, edited_sha256, result, expires_ms)
)
update convoke.steps s set approval = case when i.approved then 'granted' else s.approval end, approved_by = $6::text,
    approval_expires_at = case when i.approved then $7::text::timestamptz + i.expires_ms * interval '1 ms' end,
    edited_args = i.edited_args, edited_sha256 = i.edited_sha256,
    state = case when i.approved then s.state else 'denied' end,
    result = case when i.approved then s.result else i.result end,
    bytes = case when i.approved then s.bytes else octet_length(i.result) end,
    began_at = case when i.approved then s.began_at else clock_timestamp() end,
    ended_at = case when i.approved then s.ended_at else clock_timestamp() end,
    assignment_id = l.id, epoch = l.epoch
from decided i cross join live l
where s.task_id = $2 and s.run = $5 and s.seq = i.seq and s.kind = 'tool' and s.state = 'planned'
    and s.approval = 'asked'
returning s.seq
