-- A part of a task in the same thread has its turn within that task, before all that come after it
-- (docs/decisions/54). Otherwise the part would wait for the task, and the task for its part.
alter table convoke.thread_tasks
    -- The path of the nearest live task above this one in the same thread. Empty if there is none.
    add column within bigint[] not null default '{}';
alter table convoke.thread_tasks
    -- The order of the thread: a task, then what is within it, then the next.
    add column path bigint[] not null generated always as (within || place) stored;

drop index convoke.thread_tasks_by_place;
create index thread_tasks_by_path on convoke.thread_tasks (agent_id, thread, path);
