update convoke.task_defaults set attempts_max = $1, policies = $2 where attempts_max <> $1 or policies <> $2
