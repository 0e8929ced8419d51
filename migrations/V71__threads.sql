-- Threads of agents (docs/spec/thinking-agents.md, M2): the tasks of one thread are worked on one after the other. A
-- thread is a hash of the value that `run.thread` makes of a task's input.
create table convoke.thread_tasks (
    task_id uuid primary key references convoke.tasks on delete cascade,
    agent_id text not null,
    thread text not null,
    -- Its place in the thread. Taken under a lock of the thread, so that a lower place is never committed later.
    place bigint not null generated always as identity,
    -- How often the task was put off because another one of its thread had not ended.
    waits integer not null default 0
);

create index thread_tasks_by_place on convoke.thread_tasks (agent_id, thread, place);

alter table convoke.thread_tasks enable row level security;
