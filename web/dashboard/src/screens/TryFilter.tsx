// For admins: what a wake would do with a row. Nothing is changed, and no task is requested.
import { useSignal } from "@preact/signals";
import type { JSX } from "preact";
import { tryFilter } from "../api.ts";
import { Dialog, useCommand } from "../dialog.tsx";
import { status } from "../live.ts";
import { isAdmin } from "../session.ts";
import type { Trial, TriedCondition, Trigger } from "../types.ts";

/** The events with a row. */
const EVENTS = ["INSERT", "UPDATE", "DELETE"] as const;

export function TryFilter({ trigger }: { trigger: Trigger }): JSX.Element | null {
  const isOpen = useSignal(false);
  if (!isAdmin.value || trigger.kind !== "wake") return null;
  const title = `Try the filter of ${trigger.trigger}`;
  return (
    <>
      <button type="button" class="small" aria-label={title} disabled={status.value === "no connection"} onClick={() => (isOpen.value = true)}>Try…</button>
      <Dialog label={title} isOpen={isOpen.value} onClose={() => (isOpen.value = false)}>
        <TrialForm trigger={trigger} title={title} onClose={() => (isOpen.value = false)} />
      </Dialog>
    </>
  );
}

function TrialForm({ trigger, title, onClose }: { trigger: Trigger; title: string; onClose: () => void }): JSX.Element {
  const event = useSignal<string>(EVENTS.find((known) => trigger.events?.includes(known)) ?? "INSERT");
  const row = useSignal(example(trigger.reads ?? []));
  const trial = useSignal<Trial | null>(null);
  const { fault, isBusy, act } = useCommand(async () => {
    trial.value = null;
    trial.value = await tryFilter(trigger.trigger, event.value, row.value);
  });
  const submit = (submitted: Event): void => {
    submitted.preventDefault();
    void act();
  };
  return (
    <form class="command" onSubmit={submit}>
      <h2>{title}</h2>
      <p class="soft">{trigger.filter ? <>The wake takes rows of <code>{trigger.table}</code> with <code>{trigger.filter}</code>.</> : <>The wake takes every row of <code>{trigger.table}</code>.</>} The daemon says what it would do; it changes nothing.</p>
      <label>Change<select value={event.value} onChange={(changed) => (event.value = changed.currentTarget.value)}>{EVENTS.map((name) => <option key={name}>{name}</option>)}</select></label>
      <label>Row, as JSON; a column that is left out is NULL<textarea rows={6} required spellcheck={false} value={row.value} onInput={(typed) => (row.value = typed.currentTarget.value)} /></label>
      {fault.value ? <p class="bad" role="alert">{fault.value}</p> : null}
      <div class="inline">
        <button type="submit" class="primary" disabled={isBusy.value}>{isBusy.value ? "Trying…" : "Try the row"}</button>
        <button type="button" onClick={onClose}>Close</button>
      </div>
      <div role="status">{trial.value ? <Verdict trial={trial.value} /> : null}</div>
    </form>
  );
}

/** A row to fill in. */
function example(columns: readonly string[]): string {
  return columns.length ? `{\n${columns.map((name) => `  ${JSON.stringify(name)}: null`).join(",\n")}\n}` : "{}";
}

function Verdict({ trial }: { trial: Trial }): JSX.Element {
  const { outcome, request, conditions } = trial;
  return (
    <div class="trial">
      {outcome === "wakes" ? <p><b class="state-completed">✓ The row wakes it:</b> a task of kind <code>{request?.kind}</code> is requested{trial.coalesces ? ", after the changes are coalesced" : ""}.</p> : null}
      {outcome === "excluded" ? <p><b>✕ The row does not wake it.</b> {trial.listens ? "All conditions must hold." : `The wake does not listen to ${trial.event}.`}</p> : null}
      {outcome === "unfit" ? <p><b class="bad">! The wake would fail for this row:</b> {trial.problem}</p> : null}
      {conditions.length ? <ul aria-label="Conditions of the filter">{conditions.map((condition, at) => <Condition key={at} condition={condition} />)}</ul> : null}
      {request ? <details><summary>Input of the task</summary><pre tabIndex={0}>{JSON.stringify(request.input, null, 2)}</pre></details> : null}
    </div>
  );
}

function Condition({ condition: { condition, holds, columns, values } }: { condition: TriedCondition; }): JSX.Element {
  const value = (name: string): string => (name in values ? `${name} is ${values[name] === null ? "NULL" : `“${values[name]}”`}` : `${name} is not in the WAL`);
  return (
    <li>
      <span class={`state ${holds ? "state-completed" : "state-failed"}`}><span aria-hidden="true">{holds ? "✓" : "✕"}</span> {holds ? "holds" : "excludes"}</span>
      <code>{condition}</code>
      <span class="soft">{columns.map(value).join(", ")}</span>
    </li>
  );
}
