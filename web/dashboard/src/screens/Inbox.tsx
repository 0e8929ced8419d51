// All tasks that wait for a person, oldest first, each with the form that answers it.
import { useSignal } from "@preact/signals";
import type { JSX } from "preact";
import { readLines, readWhy } from "../api.ts";
import { since } from "../format.ts";
import { concernsTask } from "../live.ts";
import { useRead } from "../read.ts";
import { query, setQuery } from "../route.ts";
import type { Line } from "../types.ts";
import { AgentLink, Empty, Panel, TaskLink, Trouble } from "../ui.tsx";
import { Answer, type Need, needOf } from "./Answer.tsx";

const NEEDS: readonly Need[] = ["input", "approval", "budget", "choice"];
/** Cards that are drawn at once: each reads its task. */
const DRAWN = 20;
const LINES_MAX = 200;

export function Inbox({ org }: { org: string }): JSX.Element {
  const only = NEEDS.find((need) => need === query.value.get("for"));
  const drawn = useSignal(DRAWN);
  const { data, error } = useRead<Line[]>(`inbox ${org} ${only ?? ""}`, async (abort) => (await readLines({ needs: only ?? NEEDS.join(","), limit: LINES_MAX }, abort)).tasks, () => true).value;
  // Oldest first: it has waited longest.
  const lines = [...(data ?? [])].reverse();
  return (
    <>
      <h1>Inbox</h1>
      <div class="list-head" role="group" aria-label="What is needed">
        {NEEDS.map((need) => <button key={need} type="button" class="chip" aria-pressed={need === only} onClick={() => setQuery({ for: need === only ? "" : need })}>{need}</button>)}
        <span role="status" class="soft">{data ? `${lines.length}${lines.length === LINES_MAX ? "+" : ""} ${lines.length === 1 ? "task waits" : "tasks wait"} for a person` : "Loading…"}</span>
      </div>
      {error ? <Trouble problem={error} /> : null}
      {data && !lines.length ? <Empty title="Nothing waits for a person"><p>Questions of agents, approvals, budgets that are used up, calls with an unknown outcome and offers to choose from appear here.</p></Empty> : null}
      <ul class="cards">{lines.slice(0, drawn.value).map((line) => <li key={line.id}><Card org={org} line={line} /></li>)}</ul>
      {lines.length > drawn.value ? <p class="further"><button type="button" onClick={() => (drawn.value += DRAWN)}>Show {Math.min(DRAWN, lines.length - drawn.value)} more</button></p> : null}
    </>
  );
}

function Card({ org, line }: { org: string; line: Line }): JSX.Element {
  const { data, error } = useRead(`why ${line.id}`, (abort) => readWhy(line.id, abort), concernsTask(line.id)).value;
  const need = data ? needOf(data) : null;
  return (
    <Panel title={line.kind} aside={<TaskLink org={org} id={line.id} />}>
      <p class="facts">
        <span class="badge wait">{line.needs}</span>
        {line.agent_id ? <AgentLink org={org} id={line.agent_id} /> : null}
        <span class="soft">requested by {line.requester} · waiting for {since(line.updated_at)}</span>
      </p>
      {line.input_preview && line.input_preview !== "null" ? <p class="preview soft">{line.input_preview}</p> : null}
      {error ? <Trouble problem={error} /> : null}
      {data && need ? <Answer org={org} why={data} need={need} /> : <p class="soft" role="status">{data ? "It waits no longer." : line.question ?? "Loading…"}</p>}
    </Panel>
  );
}
