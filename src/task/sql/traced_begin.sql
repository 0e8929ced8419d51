-- The number of the last event that was read for the export. The first export begins with the newest event.
insert into convoke.trace_export (seq) select coalesce(max(seq), 0) from convoke.events
on conflict (single) do update set seq = trace_export.seq returning seq
