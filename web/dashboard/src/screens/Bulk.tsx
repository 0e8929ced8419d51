// Many tasks at once: the selected ones, or all that the filter finds. The daemon counts them before anything changes.
import { signal, useSignal } from "@preact/signals";
import type { JSX } from "preact";
import { bulk } from "../api.ts";
import { Dialog } from "../dialog.tsx";
import { type Filter, toParams } from "../filter.ts";
import { count, now } from "../format.ts";
import { again, status } from "../live.ts";
import { isOperator } from "../session.ts";
import type { BulkDone, Line } from "../types.ts";

export const selected = signal<ReadonlySet<string>>(new Set());
let anchor: string | null = null;

/** Selects a row, or with `range` all rows from the last one that was selected. */
export function toggle(ids: readonly string[], id: string, range: boolean): void {
  const next = new Set(selected.value);
  const from = anchor === null ? -1 : ids.indexOf(anchor);
  const to = ids.indexOf(id);
  if (range && from >= 0) for (const one of ids.slice(Math.min(from, to), Math.max(from, to) + 1)) next.add(one);
  else if (!next.delete(id)) next.add(id);
  anchor = id;
  selected.value = next;
}

type Action = "cancel" | "requeue";
interface Plan {
  action: Action;
  body: object;
  found: BulkDone | null;
  done: BulkDone | null;
}

const VERBS: Record<Action, string> = { cancel: "Cancel", requeue: "Requeue" };

export function Bulk({ filter, lines }: { filter: Filter; lines: readonly Line[] }): JSX.Element | null {
  const plan = useSignal<Plan | null>(null);
  const fault = useSignal<string | null>(null);
  const isBusy = useSignal(false);
  // The dialog stays when the tasks that it changed leave the list.
  if (!isOperator.value || (!lines.length && plan.value === null)) return null;
  const ids = [...selected.value];
  const ask = async (next: Plan, dry_run: boolean): Promise<BulkDone | null> => {
    if (isBusy.peek()) return null;
    isBusy.value = true;
    fault.value = null;
    try {
      return await bulk({ ...next.body, action: next.action, dry_run });
    } catch (error) {
      fault.value = error instanceof Error ? error.message : String(error);
      return null;
    } finally {
      isBusy.value = false;
    }
  };
  const begin = async (action: Action): Promise<void> => {
    const given = Object.fromEntries(Object.entries(toParams(filter, now.value)).filter(([, value]) => value !== null));
    const next: Plan = { action, body: ids.length ? { ids } : { filter: given }, found: null, done: null };
    plan.value = next;
    const found = await ask(next, true);
    if (plan.peek() === next) plan.value = { ...next, found };
  };
  const run = async (event: Event): Promise<void> => {
    event.preventDefault();
    const current = plan.peek();
    if (!current?.found || current.done) return;
    const done = await ask(current, false);
    if (!done) return;
    plan.value = { ...current, done };
    selected.value = new Set();
    again();
  };
  const close = (): void => {
    plan.value = null;
    fault.value = null;
  };
  const what = ids.length ? `${ids.length} selected` : "all found";
  return (
    <>
      {(["cancel", "requeue"] as const).map((action) => <button key={action} type="button" class="small" disabled={status.value === "no connection"} onClick={() => void begin(action)}>{VERBS[action]} {what}…</button>)}
      {ids.length ? <button type="button" class="quiet small" onClick={() => (selected.value = new Set())}>Select none</button> : null}
      <Dialog label="Many tasks at once" isOpen={plan.value !== null} onClose={close}>
        {plan.value ? <Steps plan={plan.value} fault={fault.value} isBusy={isBusy.value} run={run} close={close} /> : null}
      </Dialog>
    </>
  );
}

function Steps({ plan: { action, found, done }, fault, isBusy, run, close }: { plan: Plan; fault: string | null; isBusy: boolean; run: (event: Event) => Promise<void>; close: () => void }): JSX.Element {
  const tasks = (n: number): string => `${count(n)} ${n === 1 ? "task" : "tasks"}`;
  return (
    <form class="command" onSubmit={(event) => void run(event)}>
      <h2>{VERBS[action]} many tasks</h2>
      <div role="status">
        {done ? <p><b>{tasks(done.tasks.length)} {action === "cancel" ? "canceled" : "requeued"}{done.refused.length ? `, ${count(done.refused.length)} refused` : ""}.</b>{done.more ? " There may be more: do it again." : ""}</p> : null}
        {!done && found ? <p>{found.tasks.length ? <>This will {action} <b>{tasks(found.tasks.length)}</b>{action === "cancel" ? ", with the parts of each" : ""}.</> : `No task can be ${action === "cancel" ? "canceled" : "requeued"}.`}{found.more ? " The newest 1,000 tasks of the filter were looked at." : ""}</p> : null}
        {!done && !found && !fault ? <p>Counting…</p> : null}
      </div>
      <Refused list={(done ?? found)?.refused ?? []} />
      {fault ? <p class="bad" role="alert">{fault}</p> : null}
      <div class="inline">
        {done ? null : <button type="submit" class={action === "cancel" ? "danger" : "primary"} disabled={isBusy || !found?.tasks.length}>{VERBS[action]} {found ? tasks(found.tasks.length) : ""}</button>}
        <button type="button" onClick={close}>{done ? "Close" : "Leave them"}</button>
      </div>
    </form>
  );
}

function Refused({ list }: { list: BulkDone["refused"] }): JSX.Element | null {
  if (!list.length) return null;
  return <ul class="rows refused">{list.slice(0, 20).map(({ id, reason }) => <li key={id}><code>{id}</code><small>{reason}</small></li>)}{list.length > 20 ? <li><small>{count(list.length - 20)} more</small></li> : null}</ul>;
}
