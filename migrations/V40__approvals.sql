-- Approvals of calls before they begin (docs/spec/thinking-agents.md §3.5). An approval is of one call with exactly
-- these arguments: it is used up by the row that begins the call.
alter table convoke.steps
    add column approval text check (approval in ('asked', 'granted', 'used')),
    -- The person who decided.
    add column approved_by text,
    -- A call that has not begun by then is asked about again.
    add column approval_expires_at timestamptz,
    -- What the person made of the arguments, if the call runs with others than the model gave.
    add column edited_args json,
    add column edited_sha256 text;

alter table convoke.steps drop constraint steps_state_check;
alter table convoke.steps add constraint steps_state_check
    check (state in ('planned', 'started', 'done', 'failed', 'denied', 'skipped', 'unknown'));
