-- Calls of the class `checked`, whose effect a probe decides about, and calls that ended in doubt
-- (docs/spec/thinking-agents.md §1.2, §1.4).
alter table convoke.steps
    -- The call has ended, and it is unknown whether it had its effect.
    add column doubtful boolean not null default false;

alter table convoke.steps drop constraint steps_effect_check;
alter table convoke.steps add constraint steps_effect_check
    check (effect in ('read', 'database', 'keyed', 'checked', 'once'));
