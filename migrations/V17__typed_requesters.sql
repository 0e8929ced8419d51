-- The requester of a task becomes a type instead of a name (`Requester` in src/id/requester.rs): a user named like an
-- agent, or like the service, is another requester. Before, an agent was stored by its bare id, a user by its bare
-- `sub`, and the service as `service_role`.
--
-- Earlier rows contain neither kind nor issuer. The name of an agent of the task's org becomes that agent. Requests
-- by the daemon and by SQL keep their text. Any other name becomes a user without an issuer: only a token with this
-- `sub` and without `iss`, or the service, may command its tasks.
update convoke.tasks as t set requester = case
        when t.requester = 'service_role' then 'service'
        when t.requester ~ '^[^#:]*#[0-9a-f]{12}$' then 'token:' || right(t.requester, 12)
        when exists (select from convoke.agents a where a.id = t.requester and a.org = t.org)
            then 'agent:' || t.org || '/' || t.requester
        else 'user:#' || t.requester
    end
where t.requester !~ '^(sql|schedule|wake|verify):';

-- The event log gets the same change, so that replaying it yields the rows.
alter table convoke.events disable trigger events_append_only;
update convoke.events as e set body = jsonb_set(e.body, '{requester}', to_jsonb(t.requester))
from convoke.tasks t
where e.type = 'requested' and t.id = e.task_id and e.body ->> 'requester' is distinct from t.requester;
alter table convoke.events enable trigger events_append_only;
