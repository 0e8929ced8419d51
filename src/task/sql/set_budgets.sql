insert into convoke.budgets (task_id, tree, tokens_max, microdollars_max)
select * from unnest($1::uuid[], $2::boolean[], $3::bigint[], $4::bigint[])
    as i(task_id, tree, tokens_max, microdollars_max)
on conflict do nothing
