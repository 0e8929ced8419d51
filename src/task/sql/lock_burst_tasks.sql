select from convoke.tasks t
where t.state = 'open' and t.epoch = 0 and t.id in (
    select b.task_id from convoke.bursts b
    where (b.trigger, b.key) in (select i.trigger, i.key from unnest($1::text[], $2::text[]) as i(trigger, key)))
order by t.id for update
