// The runs of an agent that thinks: each question to the model and each call of a tool, in order.
import { useSignal } from "@preact/signals";
import type { JSX } from "preact";
import { readSteps } from "../api.ts";
import { pretty } from "../exact.ts";
import { between, count, duration, money } from "../format.ts";
import { eventCount } from "../focus.ts";
import { concernsTask } from "../live.ts";
import { useRead } from "../read.ts";
import { isOperator } from "../session.ts";
import type { Run, Step } from "../types.ts";
import { AgentLink, At, Empty, Panel, Trouble } from "../ui.tsx";
import { words } from "../words.ts";

/** Longer contents are cut on the screen. */
const SHOWN_CHARS_MAX = 20_000;
const ICONS: Record<string, string> = { note: "✎", model: "◇", tool: "⚙" };
const CONTENTS = ["note", "answer", "args", "result"] as const;

export function Steps({ org, id }: { org: string; id: string }): JSX.Element {
  const { data, error } = useRead<Run[]>(`steps ${id}`, (abort) => readSteps(id, abort), concernsTask(id), 50, eventCount).value;
  if (!data) return error ? <Trouble problem={error} /> : <p class="boot" role="status">Loading…</p>;
  if (!data.length) return <Empty title="No steps"><p>Only agents that think work in steps: those of kind <code>llm</code> with <code>run.tools</code>.</p></Empty>;
  return (
    <>
      {error ? <Trouble problem={error} /> : null}
      {isOperator.value ? null : <p class="soft">Texts, arguments and results are shown to operators only.</p>}
      {[...data].reverse().map((run) => <RunView key={run.run} org={org} run={run} />)}
    </>
  );
}

function RunView({ org, run }: { org: string; run: Run }): JSX.Element {
  return (
    <Panel title={`Run ${run.run}`} class="round" aside={<span class="soft">{run.model ?? "no model"} · {count(run.tokens)} tokens · {money(run.microdollars)}</span>}>
      <p class="facts">
        <AgentLink org={org} id={run.agent_id} />
        {run.started_at ? <span class="soft">began <At at={run.started_at} /></span> : null}
        <span>{run.ended_as ? `ended: ${words(run.ended_as)}` : "not ended"}</span>
      </p>
      <ol class="events">{run.steps.map((step) => <StepRow key={step.seq} step={step} />)}</ol>
    </Panel>
  );
}

function StepRow({ step }: { step: Step }): JSX.Element {
  const isOpen = useSignal(false);
  const contents = CONTENTS.flatMap((name) => (step[name] === undefined || step[name] === null ? [] : [[name, step[name]] as const]));
  const took = between(step.began_at, step.ended_at);
  const what = step.kind === "tool" ? step.tool : step.kind === "model" ? "question to the model" : step.note_kind;
  return (
    <li class={`step step-${step.state}`}>
      <div class="event">
        {contents.length ? <button type="button" class="quiet small" aria-expanded={isOpen.value} aria-label={`Contents of step ${step.seq}`} onClick={() => (isOpen.value = !isOpen.value)}>{isOpen.value ? "▾" : "▸"}</button> : null}
        <span class="soft">{step.seq}</span>
        <span aria-hidden="true">{ICONS[step.kind] ?? "·"}</span>
        <b>{String(what ?? step.kind)}</b>
        <span class={`step-state ${step.state}`}>{step.state}{step.tries > 1 ? `, try ${step.tries}` : ""}</span>
        {Number.isFinite(took) ? <span class="soft">{duration(took)}</span> : null}
        {typeof step.tokens === "number" ? <span class="soft">{count(step.tokens)} tokens</span> : null}
        {typeof step.microdollars === "number" ? <span class="soft">{money(step.microdollars)}{step.presumed ? ", presumed" : ""}</span> : null}
        <span class="preview soft">{preview(step)}</span>
      </div>
      {isOpen.value ? contents.map(([name, value]) => <div key={name}><h3>{name}</h3><pre tabIndex={0}>{shown(value)}</pre></div>) : null}
    </li>
  );
}

function shown(value: unknown): string {
  const text = typeof value === "string" ? value : pretty(value);
  return text.length > SHOWN_CHARS_MAX ? `${text.slice(0, SHOWN_CHARS_MAX)}\n… ${count(text.length)} characters` : text;
}

function preview(step: Step): string {
  const first = step.args ?? step.note ?? "";
  return (typeof first === "string" ? first : JSON.stringify(first)).slice(0, 160);
}
