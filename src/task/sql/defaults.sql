update convoke.task_defaults set attempts_max = $1 where attempts_max <> $1
