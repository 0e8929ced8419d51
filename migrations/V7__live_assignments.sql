-- A live assignment is one that has not ended, in one column that changes once: taking up the work no longer
-- moves it in the index, and the few live ones are found without reading past the entries of all that were.

alter table convoke.assignments add constraint live_until_ended
    check ((ended_at is null) = (state in ('awarded', 'running', 'waiting')));

drop index convoke.assignments_live;
-- At most one live assignment a task.
create unique index assignments_live on convoke.assignments (task_id) where ended_at is null;

-- Every step of a task leaves a row version and index entries behind, and the indexes of what is open or due are
-- read all the time. A share of a table with millions of finished tasks would come too late.
alter table convoke.tasks set (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 5000,
    autovacuum_analyze_scale_factor = 0.02);
alter table convoke.assignments set (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 5000,
    autovacuum_analyze_scale_factor = 0.02);
alter table convoke.offers set (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 20000);
