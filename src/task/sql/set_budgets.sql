insert into convoke.budgets (task_id, tree, tokens_max, microdollars_max)
select * from unnest($1::uuid[], $2::boolean[], $3::bigint[], $4::bigint[])
on conflict do nothing
