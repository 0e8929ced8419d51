-- A part (child task) runs within its parent in a thread, before all tasks that came after the parent
-- (docs/decisions/0054). Otherwise parent and part would wait for each other: a deadlock.
alter table convoke.thread_tasks
    -- Path of the nearest live ancestor in the same thread. Empty if there is no such ancestor.
    add column within bigint[] not null default '{}';
alter table convoke.thread_tasks
    -- Sort key of the thread: a task, its descendants, then the next task.
    add column path bigint[] not null generated always as (within || place) stored;

drop index convoke.thread_tasks_by_place;
create index thread_tasks_by_path on convoke.thread_tasks (agent_id, thread, path);
