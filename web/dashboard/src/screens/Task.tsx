// One task: who has it and why, what happened, and its data.
import type { JSX } from "preact";
import { useRead } from "../read.ts";
import { readWhy } from "../api.ts";
import { duration, money, now, shortId } from "../format.ts";
import { TABS, type Tab, go, href } from "../route.ts";
import { FINAL, type Why as WhyAnswer } from "../types.ts";
import { AgentLink, Ago, Copy, Money, Progress, State, TaskLink, Trouble, left } from "../ui.tsx";
import { Data } from "./Data.tsx";
import { Events } from "./Events.tsx";
import { Timeline } from "./Timeline.tsx";
import { Why } from "./Why.tsx";

const TITLES: Record<Tab, string> = { why: "Why", timeline: "Timeline", events: "Events", data: "Data" };

export function Task({ org, id, tab }: { org: string; id: string; tab: Tab }): JSX.Element {
  const { data, error } = useRead(`why ${id}`, (abort) => readWhy(id, abort), (ids) => ids.has(id), 100).value;
  if (!data) return error ? <><h1>Task <code>{shortId(id)}</code></h1><Trouble problem={error} /></> : <p class="boot" role="status">Loading…</p>;
  return (
    <>
      {error ? <Trouble problem={error} /> : null}
      <Head org={org} why={data} />
      <Tabs org={org} id={id} tab={tab} />
      <div role="tabpanel" id="panel" aria-labelledby={`tab-${tab}`} tabIndex={-1}>
        {tab === "why" ? <Why org={org} why={data} /> : null}
        {tab === "timeline" ? <Timeline org={org} why={data} /> : null}
        {tab === "events" ? <Events org={org} id={id} /> : null}
        {tab === "data" ? <Data why={data} /> : null}
      </div>
    </>
  );
}

function Head({ org, why }: { org: string; why: WhyAnswer }): JSX.Element {
  const { task, attempts, paid } = why;
  const live = attempts.find((attempt) => !attempt.ended_at);
  const end = FINAL.has(task.state) ? Date.parse(task.updated_at) : now.value;
  const lease = live ? left(live.lease_until) : "";
  const limit = task.budget?.task?.microdollars.max;
  return (
    <header class="task-head">
      <h1>{task.kind} <code title={task.id}>{shortId(task.id)}</code> <Copy text={task.id}>Copy id</Copy></h1>
      <p class="facts">
        <State state={task.state} reason={task.state_reason} />
        {live && live.progress !== null ? <Progress value={live.progress} label="Progress" /> : null}
        {task.agent_id ? <span>with <AgentLink org={org} id={task.agent_id} /></span> : null}
        <span>{duration(end - Date.parse(task.created_at))} <span class="soft">in all</span></span>
        <span><span class="soft">attempt</span> {task.attempt} / {task.attempts_max}</span>
        <span><span class="soft">epoch</span> {task.epoch}</span>
        {lease ? <span><span class="soft">lease</span> {lease}</span> : null}
        <span><Money value={paid.microdollars} presumed={paid.presumed} />{limit ? <span class="soft"> of {money(limit)}</span> : null}</span>
        <span><span class="soft">requested</span> <Ago at={task.created_at} /> <span class="soft">by {task.requester}</span></span>
        {task.parent_id ? <span><span class="soft">part of</span> <TaskLink org={org} id={task.parent_id} /></span> : null}
      </p>
      {task.question?.question && task.state === "waiting" ? (
        <div class="notice wait">
          <strong>{task.question.agent_id ?? "The agent"} asks: {task.question.question}</strong>
          <p>Answer with <code>convoke task answer {task.id} '"…"'</code>{task.question.asked_at ? <> · asked <Ago at={task.question.asked_at} /></> : null}</p>
        </div>
      ) : null}
    </header>
  );
}

function Tabs({ org, id, tab }: { org: string; id: string; tab: Tab }): JSX.Element {
  const to = (name: Tab): string => (name === "why" ? href(org, "tasks", id) : href(org, "tasks", id, name));
  const move = (event: KeyboardEvent): void => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step === undefined) return;
    const next = TABS[(TABS.indexOf(tab) + step + TABS.length) % TABS.length] ?? "why";
    event.preventDefault();
    go(to(next), { replace: true });
    document.getElementById(`tab-${next}`)?.focus();
  };
  return (
    <div class="tabs" role="tablist" aria-label="Views of the task" onKeyDown={move}>
      {TABS.map((name) => (
        <a key={name} id={`tab-${name}`} role="tab" aria-selected={name === tab} aria-controls="panel" tabIndex={name === tab ? 0 : -1} href={to(name)}>{TITLES[name]}</a>
      ))}
    </div>
  );
}
