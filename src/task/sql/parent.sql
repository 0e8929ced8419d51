select case when not detached then parent_id end as parent_id from convoke.tasks where id = $1
