update convoke.task_defaults set attempts_max = $1, policies = $2, traced_percent = $3
where attempts_max <> $1 or policies <> $2 or traced_percent <> $3
