// The daemon: its parts as its health route reports them, figures over time, sessions; for admins checks and settings.
import type { JSX } from "preact";
import { readOverview } from "../api.ts";
import { useRead } from "../read.ts";
import { isAdmin } from "../session.ts";
import { Panel, Trouble } from "../ui.tsx";
import { words } from "../words.ts";
import { Charts } from "./Charts.tsx";
import { Checks, Settings } from "./Checks.tsx";
import { Sessions } from "./Sessions.tsx";

const ICONS: Record<string, string> = { ready: "✓", degraded: "◔", down: "✕" };
const CLASSES: Record<string, string> = { ready: "state-completed", degraded: "state-waiting", down: "state-failed" };

export function System({ org }: { org: string }): JSX.Element {
  const { data, error } = useRead(`system ${org}`, readOverview, () => true, 2000).value;
  const parts = Object.entries(data?.health.parts ?? {});
  return (
    <>
      <h1>System</h1>
      {error ? <Trouble problem={error} /> : null}
      <div class="stack">
        {data ? (
          <Panel title={`The daemon is ${data.health.status.replace("_", " ")}`} aside={<span class="soft">version {data.health.version}</span>}>
            <div class="scroll" tabIndex={0} role="region" aria-label="Parts of the daemon"><table>
              <caption class="hidden">Parts of the daemon</caption>
              <thead><tr><th>Part</th><th>State</th><th>Detail</th></tr></thead>
              <tbody>{parts.map(([name, { state, detail }]) => <tr key={name}><th scope="row">{words(name)}</th><td><span class={`state ${CLASSES[state] ?? ""}`}><span aria-hidden="true">{ICONS[state] ?? "·"}</span> {state}</span></td><td>{detail}</td></tr>)}</tbody>
            </table></div>
          </Panel>
        ) : error ? null : <p class="boot" role="status">Loading…</p>}
        <Charts org={org} />
        <Sessions />
        {isAdmin.value ? <><Checks /><Settings /></> : null}
      </div>
    </>
  );
}
