-- The oldest task of the range that `lines_range.sql` looks at; no row if it looks at all of them.
select r.id from convoke.tasks r
where ($1::uuid is null or r.id >= $1) and ($2::uuid is null or r.id < $2)
order by r.id desc offset 49999 limit 1
