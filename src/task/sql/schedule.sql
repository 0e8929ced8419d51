insert into convoke.schedules as s (trigger, agent_id, org, cron) values ($1, $2, $3, $4)
on conflict (trigger) do update set agent_id = excluded.agent_id, org = excluded.org, cron = excluded.cron,
    fired_at = case when s.cron = excluded.cron then s.fired_at else clock_timestamp() end
returning fired_at
