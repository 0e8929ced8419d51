-- Runs that begin with a copy of the steps of another task (docs/spec/thinking-agents.md §4, M16): which task, and its
-- last step that was copied. What the copied steps did and used belongs to that task. The number of the run is the same
-- in both.
alter table convoke.runs
    add column forked_from uuid,
    add column forked_at integer,
    add constraint runs_forked_check check ((forked_from is null) = (forked_at is null) and forked_at >= 1);
