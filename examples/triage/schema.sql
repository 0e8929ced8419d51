-- What the owner of a support desk has: a table of tickets.
-- And what Convoke adds: one trigger, so that a result is written in the commit that finishes its task.

create table if not exists public.tickets (
    id bigint generated always as identity primary key,
    customer text not null,
    plan text not null check (plan in ('free', 'team', 'enterprise')),
    subject text not null,
    body text not null,
    created_at timestamptz not null default now(),
    -- What the agents find out.
    category text,
    urgency int check (urgency between 1 and 5),
    reason text,
    triaged_by text,
    triaged_at timestamptz
);

-- Every transition of a task appends to convoke.events in the transition's own transaction. So this
-- runs in the commit that makes the task `completed`: there is no moment at which the task is done
-- and the ticket is not, and a crash between the two is impossible.
create or replace function public.write_triage_back() returns trigger language plpgsql as $$
begin
    update public.tickets
       set category = t.result ->> 'category',
           urgency = (t.result ->> 'urgency')::int,
           reason = t.result ->> 'reason',
           triaged_by = new.agent_id,
           triaged_at = new.at
      from convoke.tasks t
     where t.id = new.task_id
       and t.kind = 'support.triage'
       and t.state = 'completed'
       and tickets.id = (t.input -> 'ticket' ->> 'id')::bigint;
    return null;
end
$$;

drop trigger if exists write_triage_back on convoke.events;
create trigger write_triage_back
    after insert on convoke.events
    for each row when (new.type = 'finished')
    execute function public.write_triage_back();
