-- An agent that is drained gets no new task and finishes what it has, also after restarts, until it is resumed.
alter table convoke.agents
    add column drained_at timestamptz,
    -- The person or program that drained it, like `user:convoke#ana`.
    add column drained_by text;
