// The wakes and schedules of the agents' files, and what each did last.
import type { JSX } from "preact";
import { readTriggers } from "../api.ts";
import { count } from "../format.ts";
import { useRead } from "../read.ts";
import type { Burst, Trigger } from "../types.ts";
import { TryFilter } from "./TryFilter.tsx";
import { AgentLink, Ago, At, Empty, Panel, TaskLink, Trouble } from "../ui.tsx";

export function Triggers({ org }: { org: string }): JSX.Element {
  const { data, error } = useRead(`triggers ${org}`, readTriggers, () => true, 2000).value;
  return (
    <>
      <h1>Triggers</h1>
      {error ? <Trouble problem={error} /> : null}
      {!data && !error ? <p class="boot" role="status">Loading…</p> : null}
      {data && !data.triggers.length ? (
        <Empty title="No agent's file has a wake or a schedule">
          <p>A wake requests a task for each change of a table:</p>
          <pre tabIndex={0}>{'[[wake]]\ntable = "public.tickets"\nevents = ["INSERT"]\nrequest = { kind = "support.triage", requires = ["support.triage"] }'}</pre>
        </Empty>
      ) : null}
      {data?.triggers.length ? (
        <div class="scroll" tabIndex={0} role="region" aria-label="Triggers">
          <table class="plain-table">
            <caption class="hidden">Wakes and schedules</caption>
            <thead><tr><th>Trigger</th><th>Agent</th><th>When</th><th>Requests</th><th>Last</th><th class="number">Tasks</th><th class="number">Failed</th></tr></thead>
            <tbody>{data.triggers.map((trigger) => <Row key={`${trigger.kind} ${trigger.trigger}`} org={org} trigger={trigger} />)}</tbody>
          </table>
        </div>
      ) : null}
      {data?.triggers.some(({ kind }) => kind === "wake") ? <p class="soft">Counts are of the latest 1,000 firings of a wake that are kept, for at least an hour.</p> : null}
      {data?.bursts.length ? <Panel title="Changes that wait to be coalesced"><ul class="rows">{data.bursts.map((burst) => <BurstRow key={`${burst.trigger} ${burst.key}`} burst={burst} />)}</ul></Panel> : null}
    </>
  );
}

function Row({ org, trigger }: { org: string; trigger: Trigger }): JSX.Element {
  return (
    <tr>
      <th scope="row">{trigger.trigger} <TryFilter trigger={trigger} /></th>
      <td><AgentLink org={org} id={trigger.agent_id} /></td>
      <td class="wraps when">{trigger.kind === "schedule" ? <><code>{trigger.cron}</code> <span class="soft">{trigger.timezone}</span></> : <>{trigger.events?.join(", ")} on <code>{trigger.table}</code>{trigger.filter ? <> where <code>{trigger.filter}</code></> : null}{trigger.coalesces ? <span class="soft"> coalesced</span> : null}</>}</td>
      <td>{trigger.requests}</td>
      <td>{trigger.last_at ? <>{trigger.last_task ? <TaskLink org={org} id={trigger.last_task}><Ago at={trigger.last_at} /></TaskLink> : <Ago at={trigger.last_at} />}</> : <span class="soft">never</span>}{trigger.last_error ? <small class="bad">{trigger.last_error}</small> : null}</td>
      <td class="number">{trigger.tasks === undefined ? "–" : count(trigger.tasks)}</td>
      <td class="number">{trigger.failed ? <b class="bad">{count(trigger.failed)}</b> : trigger.failed === undefined ? "–" : 0}</td>
    </tr>
  );
}

function BurstRow({ burst }: { burst: Burst }): JSX.Element {
  return <li><b>{burst.trigger}{burst.key ? `: ${burst.key}` : ""}</b><small>{count(burst.changes)} changes since <At at={burst.first_at} />{burst.due_at ? <>, due <At at={burst.due_at} /></> : null}{burst.error ? ` · ${burst.error}` : ""}</small></li>;
}
