update convoke.schedules set fired_at = $2, task_id = $3 where trigger = $1 and fired_at < $2 returning trigger
