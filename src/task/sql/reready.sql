update convoke.tasks t set due_at = null, bids_close_at = null, state = 'open', updated_at = clock_timestamp(),
    version = t.version + 1
where t.id = any($1) and t.state in ('open', 'scheduled')
