-- What is spent of the limits of a day (docs/spec/thinking-agents.md A15): of a provider and of an org, with the most of
-- the questions under way. A row is made by the first question of a day for which there is a limit.
create table convoke.allowances (
    scope text not null check (scope in ('provider', 'org')),
    name text not null,
    -- In UTC.
    day date not null,
    -- Numeric, so that no sum can overflow.
    microdollars numeric not null,
    primary key (scope, name, day)
) with (fillfactor = 50);
alter table convoke.allowances enable row level security;
create index spend_hour on convoke.spend (hour);
