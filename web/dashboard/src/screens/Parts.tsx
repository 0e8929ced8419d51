// The tree of a task: its root, the parts, and what each depends on.
import type { JSX } from "preact";
import { readTree } from "../api.ts";
import { duration, money, now } from "../format.ts";
import { useRead } from "../read.ts";
import { nested } from "../tree.ts";
import { FINAL } from "../types.ts";
import { AgentLink, Empty, Progress, State, TaskLink, Trouble } from "../ui.tsx";

export function Parts({ org, id }: { org: string; id: string }): JSX.Element {
  // A part that is requested now is in no list yet, so every digest may concern the tree.
  const { data, error } = useRead(`tree ${id}`, (abort) => readTree(id, abort), () => true).value;
  if (!data) return error ? <Trouble problem={error} /> : <p class="boot" role="status">Loading…</p>;
  if (data.tasks.length < 2) return <Empty title="No parts"><p>It is no part of another task, and no agent has requested a part of it.</p></Empty>;
  const rows = nested(data.tasks);
  return (
    <>
      {error ? <Trouble problem={error} /> : null}
      {data.more ? <p class="soft">The first {data.tasks.length} tasks of the tree are shown and summed.</p> : null}
      <p class="big">{money(rows.reduce((sum, { line }) => sum + line.microdollars, 0))} <span class="soft">paid for {rows.length} tasks</span></p>
      <div class="scroll" tabIndex={0} role="region" aria-label="Tree of the task">
        <table class="tree">
          <caption class="hidden">The tree of the task, parts below the task that requested them</caption>
          <thead><tr><th>Task</th><th>State</th><th>Agent</th><th class="number">Took</th><th class="number">Paid</th><th>Depends on</th></tr></thead>
          <tbody>
            {rows.map(({ line, depth }) => (
              <tr key={line.id} aria-current={line.id === id ? "true" : undefined}>
                <th scope="row"><span class="indent" style={{ width: `${Math.min(depth, 8) * 18}px` }} aria-hidden="true" /><span class="hidden">level {depth + 1}: </span><TaskLink org={org} id={line.id}>{line.kind}</TaskLink>{line.id === id ? <span class="soft"> this task</span> : null}</th>
                <td><State state={line.state} reason={line.state_reason} />{line.progress !== null && !FINAL.has(line.state) ? <Progress value={line.progress} label="Progress" /> : null}</td>
                <td>{line.agent_id ? <AgentLink org={org} id={line.agent_id} /> : "–"}</td>
                <td class="number">{duration((FINAL.has(line.state) ? Date.parse(line.updated_at) : now.value) - Date.parse(line.created_at))}</td>
                <td class="number">{money(line.microdollars)}</td>
                <td>{line.depends_on.map((other) => <TaskLink key={other} org={org} id={other} />)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </>
  );
}
