-- Traces as OpenTelemetry (docs/spec/thinking-agents.md §8): tasks that begin a trace of their own, and how far the
-- event log has been read for the export.

-- The share of tasks without a trace that begin one, in percent, from the settings of the daemon that arbitrates.
alter table convoke.task_defaults add column traced_percent smallint not null default 0;

-- The context of a trace that begins with what has this id.
create function convoke.own_traceparent(id uuid) returns text language sql immutable
set search_path = pg_catalog, pg_temp as $$
    select '00-' || hex || '-' || right(hex, 16) || '-01' from (select replace(id::text, '-', '') as hex) as of_id
$$;
revoke all on function convoke.own_traceparent from public;

do $$
declare
    definition text := pg_get_functiondef('convoke.request_task'::regproc);
begin
    definition := replace(definition, 'from convoke.tasks p where p.id = request_task.parent_id)))',
        'from convoke.tasks p where p.id = request_task.parent_id), (select convoke.own_traceparent(made)
                    from convoke.task_defaults d where d.traced_percent > random() * 100)))');
    if definition !~ 'own_traceparent' then
        raise exception 'convoke.request_task does not keep the trace of its request';
    end if;
    execute definition;
end $$;

-- One row, from the first export on: the number of the last event that was read.
create table convoke.trace_export (
    single boolean primary key default true check (single),
    seq bigint not null
);
alter table convoke.trace_export enable row level security;
