// The columns of the list of tasks: what each shows, and the choice of a person.
import { signal, useSignal } from "@preact/signals";
import type { ComponentChildren, JSX } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { COLUMNS, type Column, USUAL, columnsOf, moved, withColumn } from "../columns.ts";
import { duration, money, now, score, subject } from "../format.ts";
import { FINAL, type Line } from "../types.ts";
import { AgentLink, Ago, TaskLink } from "../ui.tsx";

const KEY = "columns";

/** The chosen columns. They stay in this browser. */
export const columns = signal<readonly Column[]>(columnsOf(localStorage.getItem(KEY)));

function choose(chosen: readonly Column[]): void {
  localStorage.setItem(KEY, JSON.stringify(chosen));
  columns.value = chosen;
}

interface Shown {
  label: string;
  class?: "number" | "preview";
  cell: (line: Line, org: string) => ComponentChildren;
}

const NONE = <span class="soft">–</span>;

/** How long a task took, or has taken by now, in milliseconds. */
export const took = (line: Line): number => (FINAL.has(line.state) ? Date.parse(line.updated_at) : now.value) - Date.parse(line.created_at);

export const SHOWN: Record<Column, Shown> = {
  kind: { label: "Kind", cell: (line) => <b>{line.kind}</b> },
  task: { label: "Task", class: "preview", cell: (line, org) => <TaskLink org={org} id={line.id}>{subject(line)}</TaskLink> },
  agent: { label: "Agent", cell: (line, org) => (line.agent_id ? <AgentLink org={org} id={line.agent_id} /> : NONE) },
  offers: { label: "Offers", class: "number", cell: (line) => line.offers },
  score: { label: "Score", class: "number", cell: (line) => (line.score !== null && line.score <= 1_000_000 ? <>{score(line.score)}{line.runner_up !== null ? <span class="soft"> : {score(line.runner_up)}</span> : null}</> : NONE) },
  try: { label: "Try", class: "number", cell: (line) => `${line.attempt} / ${line.attempts_max}` },
  requested: { label: "Requested", cell: (line) => <Ago at={line.created_at} /> },
  took: { label: "Took", class: "number", cell: (line) => duration(took(line)) },
  requester: { label: "Requester", cell: (line) => line.requester },
  cost: { label: "Cost", class: "number", cell: (line) => (line.microdollars ? money(line.microdollars) : NONE) },
  priority: { label: "Priority", class: "number", cell: (line) => line.priority },
  epoch: { label: "Epoch", class: "number", cell: (line) => line.epoch },
};

export function ColumnChoice(): JSX.Element {
  const isOpen = useSignal(false);
  const choice = useRef<HTMLDetailsElement>(null);
  useEffect(() => {
    if (!isOpen.value) return;
    const close = (event: Event): void => {
      const isElsewhere = event instanceof KeyboardEvent ? event.key === "Escape" : !choice.current?.contains(event.target as Node);
      if (isElsewhere && choice.current) choice.current.open = false;
    };
    addEventListener("pointerdown", close);
    addEventListener("keydown", close);
    return () => {
      removeEventListener("pointerdown", close);
      removeEventListener("keydown", close);
    };
  }, [isOpen.value]);
  return (
    <details ref={choice} class="column-choice" onToggle={(event) => (isOpen.value = event.currentTarget.open)}>
      <summary>Columns</summary>
      {isOpen.value ? <Choice /> : null}
    </details>
  );
}

/** The chosen columns in their order, then the others. */
function Choice(): JSX.Element {
  const chosen = columns.value;
  const all = [...chosen, ...COLUMNS.filter((column) => !chosen.includes(column))];
  return (
    <div>
      <ul aria-label="Columns of the list">
        {all.map((column) => (
          <li key={column}>
            <label class="check"><input type="checkbox" checked={chosen.includes(column)} disabled={column === "task"} onChange={(event) => choose(withColumn(chosen, column, event.currentTarget.checked))} /> {SHOWN[column].label}</label>
            {chosen.indexOf(column) > 0 ? <button type="button" class="quiet small" aria-label={`Move ${SHOWN[column].label} to the left`} onClick={() => choose(moved(chosen, column))}>↑</button> : null}
          </li>
        ))}
      </ul>
      <button type="button" class="small" onClick={() => choose(USUAL)}>The usual ones</button>
    </div>
  );
}
