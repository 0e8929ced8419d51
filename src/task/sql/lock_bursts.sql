select from convoke.bursts b
where (b.trigger, b.key) in (select i.trigger, i.key from unnest($1::text[], $2::text[]) as i(trigger, key))
order by b.trigger, b.key for update
