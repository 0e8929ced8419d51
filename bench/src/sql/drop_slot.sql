-- Drops the slot if it exists and is free. Returns no row otherwise.
select s.active_pid,
    case when s.active then false else pg_drop_replication_slot(s.slot_name) is not null end as dropped
from pg_replication_slots s
where s.slot_name = $1 and s.database = current_database()
