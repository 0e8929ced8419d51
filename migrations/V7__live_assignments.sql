-- A live assignment is one that has not ended, in one column that changes once: taking up the work no longer
-- moves it in the index, and the few live ones are found without reading past the entries of all that were.

alter table convoke.assignments add constraint live_until_ended
    check ((ended_at is null) = (state in ('awarded', 'running', 'waiting')));

drop index convoke.assignments_live;
-- At most one live assignment a task.
create unique index assignments_live on convoke.assignments (task_id) where ended_at is null;
