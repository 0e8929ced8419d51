-- How long a task has waited for absent agents, and for services on which its agents depend.

alter table convoke.tasks
    -- Since when its rounds have found no agent; null once an attempt has started.
    add column unattended_since timestamptz,
    -- Since when attempts have failed because of infrastructure alone, and how many in a row.
    add column outage_since timestamptz,
    add column outages integer not null default 0,
    -- Agents that failed permanently; they are not asked again.
    add column unable text[] not null default '{}';

-- Tasks that a newly present agent may take at once.
create index tasks_unattended on convoke.tasks (org) where unattended_since is not null and state = 'open';

alter table convoke.agents
    -- Defined in agents/ and not hosted: the agent has to connect by itself.
    add column expected boolean not null default false,
    -- Null: the agent has never been present.
    alter column last_seen_at drop not null;
