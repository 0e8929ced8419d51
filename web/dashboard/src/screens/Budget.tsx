// What a task may use, what it has used, and by which attempt.
import { useSignal, type Signal } from "@preact/signals";
import type { JSX } from "preact";
import { setBudget } from "../api.ts";
import { Command } from "../dialog.tsx";
import { count, money } from "../format.ts";
import { budgetOf } from "../limits.ts";
import { type Amount, FINAL, type Task, type Why } from "../types.ts";
import { AgentLink, Money, Panel } from "../ui.tsx";
import { words } from "../words.ts";

export function BudgetFields({ task, fields }: { task: Task; fields: Signal<Record<string, string>> }): JSX.Element {
  const field = (name: string, label: string, now: number | null | undefined, shown: (value: number) => string): JSX.Element => (
    <label>{label}{now === null || now === undefined ? <span class="soft"> (no limit now)</span> : <span class="soft"> (now {shown(now)})</span>}
      <input inputMode="decimal" autocomplete="off" value={fields.value[name] ?? ""} onInput={(event) => (fields.value = { ...fields.value, [name]: event.currentTarget.value })} />
    </label>
  );
  const own = task.budget?.task;
  const tree = task.budget?.tree;
  return (
    <>
      {field("dollars", "Most dollars of this task", own?.microdollars.max, money)}
      {field("tokens", "Most tokens of this task", own?.tokens.max, count)}
      {tree ? field("treeDollars", "Most dollars with its parts", tree.microdollars.max, money) : null}
      {tree ? field("treeTokens", "Most tokens with its parts", tree.tokens.max, count) : null}
    </>
  );
}

export function RaiseBudget({ task }: { task: Task }): JSX.Element | null {
  const fields = useSignal<Record<string, string>>({});
  if (FINAL.has(task.state)) return null;
  return (
    <Command label="Set budget…" letter="b" title="Set the budget" verb="Set the budget" run={async () => {
      await setBudget(task.id, budgetOf(fields.value));
      fields.value = {};
    }}>
      <p>A limit counts all attempts together. A task that waits for budget goes on if the new limit suffices.</p>
      <BudgetFields task={task} fields={fields} />
    </Command>
  );
}

export function Budget({ org, why: { task, attempts, paid } }: { org: string; why: Why }): JSX.Element {
  const limits: [string, Amount, (value: number) => string][] = Object.entries(task.budget ?? {}).flatMap(([of, { tokens, microdollars }]) => {
    const name = of === "tree" ? "with its parts" : "of this task";
    return [[`Money ${name}`, microdollars, money], [`Tokens ${name}`, tokens, count]] as [string, Amount, (value: number) => string][];
  });
  const charged = attempts.filter((attempt) => attempt.paid);
  return (
    <div class="data">
      <Panel title="Limits" aside={<RaiseBudget task={task} />}>
        {limits.length ? <ul class="rows">{limits.map(([name, amount, shown]) => <Limit key={name} name={name} amount={amount} shown={shown} />)}</ul> : <p class="soft">This task has no limit. Agents may have a limit for an hour of their own.</p>}
      </Panel>
      <Panel title="Used" aside={<b><Money value={paid.microdollars} presumed={paid.presumed} /></b>}>
        {charged.length ? (
          <div class="scroll" tabIndex={0} role="region" aria-label="Use by attempt"><table>
            <caption class="hidden">Use by attempt</caption>
            <thead><tr><th class="number">Epoch</th><th>Agent</th><th>Ended as</th><th class="number">Tokens</th><th class="number">Money</th></tr></thead>
            <tbody>{charged.map(({ epoch, agent_id, state, paid: used }) => <tr key={epoch}><td class="number">{epoch}</td><td><AgentLink org={org} id={agent_id} /></td><td>{words(state)}</td><td class="number">{count(used?.tokens ?? 0)}</td><td class="number"><Money value={used?.microdollars} presumed={used?.presumed ?? false} /></td></tr>)}</tbody>
          </table></div>
        ) : <p class="soft">No attempt has reported a use.</p>}
        {paid.presumed ? <p class="soft">≤: an attempt ended without a report, so what was reserved for it counts.</p> : null}
      </Panel>
    </div>
  );
}

function Limit({ name, amount: { max, reserved, spent }, shown }: { name: string; amount: Amount; shown: (value: number) => string }): JSX.Element {
  if (max === null) return <li><b>{name}</b><small>no limit · {shown(spent)} spent</small></li>;
  const share = (value: number): string => `${Math.min(100, (value / Math.max(1, max)) * 100)}%`;
  return (
    <li>
      <b>{name}: {shown(max)}</b>
      <span class="meter" role="img" aria-label={`${shown(spent)} spent and ${shown(reserved)} reserved of ${shown(max)}`}><span class="spent" style={{ width: share(spent) }} /><span class="reserved" style={{ width: share(reserved) }} /></span>
      <small>{shown(spent)} spent · {shown(reserved)} reserved · {shown(Math.max(0, max - spent - reserved))} left</small>
    </li>
  );
}
