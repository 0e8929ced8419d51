// For admins: the checks of `convoke doctor`, on demand, and the settings without secrets.
import { useSignal } from "@preact/signals";
import type { JSX } from "preact";
import { readFindings, readSettings } from "../api.ts";
import { useCommand } from "../dialog.tsx";
import { useRead } from "../read.ts";
import type { Finding } from "../types.ts";
import { Panel, Trouble } from "../ui.tsx";

export function Checks(): JSX.Element {
  const findings = useSignal<Finding[] | null>(null);
  const { fault, isBusy, act } = useCommand(async () => (findings.value = await readFindings()));
  const bad = findings.value?.filter(({ ok }) => !ok).length ?? 0;
  return (
    <Panel title="Checks" aside={<button type="button" class="small" disabled={isBusy.value} onClick={() => void act()}>{isBusy.value ? "Checking…" : "Check the database"}</button>}>
      {fault.value ? <p class="bad" role="alert">{fault.value}</p> : null}
      <p class="soft" role="status">{findings.value ? (bad ? `${bad} of ${findings.value.length} checks found something to correct` : `${findings.value.length} checks found nothing to correct`) : "The set-up of the database, the files of agents, and the invariants of the tables. It reads whole tables."}</p>
      {findings.value ? (
        <div class="scroll" tabIndex={0} role="region" aria-label="Findings"><table>
          <caption class="hidden">Findings</caption>
          <thead><tr><th>Check</th><th>State</th><th>Found</th></tr></thead>
          <tbody>{[...findings.value].sort((a, b) => Number(a.ok) - Number(b.ok)).map(({ name, ok, found, remedy }, at) => (
            <tr key={`${name} ${at}`}><th scope="row">{name}</th><td><span class={`state ${ok ? "state-completed" : "state-failed"}`}><span aria-hidden="true">{ok ? "✓" : "✕"}</span> {ok ? "right" : "wrong"}</span></td><td class="wraps">{found}{remedy ? <small>{remedy}</small> : null}</td></tr>
          ))}</tbody>
        </table></div>
      ) : null}
    </Panel>
  );
}

export function Settings(): JSX.Element {
  const { data, error } = useRead("settings", readSettings, () => false).value;
  const rows = Object.entries(data ?? {}).flatMap(([section, keys]) => flat(section, keys));
  return (
    <Panel title="Settings">
      {error ? <Trouble problem={error} /> : null}
      <details>
        <summary>{rows.length} settings, with their defaults; a secret is only <code>set</code></summary>
        <div class="scroll" tabIndex={0} role="region" aria-label="Settings"><table>
          <caption class="hidden">Settings</caption>
          <thead><tr><th>Key</th><th>Value</th></tr></thead>
          <tbody>{rows.map(([key, value]) => <tr key={key}><th scope="row"><code>{key}</code></th><td class="wraps">{value}</td></tr>)}</tbody>
        </table></div>
      </details>
    </Panel>
  );
}

/** Dotted keys with their values as text. */
function flat(key: string, value: unknown): [string, string][] {
  if (typeof value !== "object" || value === null || Array.isArray(value) || !Object.keys(value).length) return [[key, value === null ? "–" : typeof value === "string" ? value : JSON.stringify(value)]];
  return Object.entries(value).flatMap(([name, member]) => flat(`${key}.${name}`, member));
}
