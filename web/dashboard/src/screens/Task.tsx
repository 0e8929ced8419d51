// One task: who has it and why, what happened, and its data.
import type { JSX } from "preact";
import { eventCount, useEvents } from "../focus.ts";
import { concernsTask } from "../live.ts";
import { useRead } from "../read.ts";
import { useSignal } from "@preact/signals";
import { cancelTask, readWhy, requeueTask } from "../api.ts";
import { Command } from "../dialog.tsx";
import { duration, money, now, shortId } from "../format.ts";
import { TABS, type Tab, go, href } from "../route.ts";
import { FINAL, type Task as TaskRow, type Why as WhyAnswer } from "../types.ts";
import { AgentLink, Ago, Copy, Money, Progress, State, TaskLink, Trouble, left } from "../ui.tsx";
import { Answer, needOf } from "./Answer.tsx";
import { Budget, RaiseBudget } from "./Budget.tsx";
import { Data } from "./Data.tsx";
import { Events } from "./Events.tsx";
import { Parts } from "./Parts.tsx";
import { Steps } from "./Steps.tsx";
import { Timeline } from "./Timeline.tsx";
import { Why } from "./Why.tsx";

const TITLES: Record<Tab, string> = { why: "Why", timeline: "Timeline", events: "Events", data: "Data", steps: "Steps", parts: "Parts", budget: "Budget" };

export function Task({ org, id, tab }: { org: string; id: string; tab: Tab }): JSX.Element {
  const { data, error } = useRead(`why ${id}`, (abort) => readWhy(id, abort), concernsTask(id), 50, eventCount).value;
  useEvents(id, data?.task.id === id && !FINAL.has(data.task.state));
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
        {tab === "steps" ? <Steps org={org} id={id} /> : null}
        {tab === "parts" ? <Parts org={org} id={id} /> : null}
        {tab === "budget" ? <Budget org={org} why={data} /> : null}
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
  const need = needOf(why);
  return (
    <header class="task-head">
      <h1>{task.kind} <code title={task.id}>{shortId(task.id)}</code> <Copy text={task.id}>Copy id</Copy> <Copy text={`convoke task why ${task.id}`}>Copy command</Copy></h1>
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
      <Actions task={task} />
      {need ? <Answer key={`${need} ${task.epoch}`} org={org} why={why} need={need} /> : null}
    </header>
  );
}

function Actions({ task }: { task: TaskRow }): JSX.Element {
  const reason = useSignal("");
  const isEnded = task.state === "failed" || task.state === "canceled";
  return (
    <div class="inline actions">
      {FINAL.has(task.state) || task.state === "canceling" ? null : (
        <Command label="Cancel…" letter="c" title={`Cancel ${task.kind}?`} verb="Cancel the task" isDangerous run={() => cancelTask(task.id, reason.value.trim())}>
          <p>{task.agent_id ? `${task.agent_id} is asked to stop, and what it has done may be lost. ` : ""}Parts of the task that have not ended are canceled, too.</p>
          <label>Reason<input value={reason.value} autocomplete="off" onInput={(event) => (reason.value = event.currentTarget.value)} /></label>
        </Command>
      )}
      {isEnded ? (
        <Command label="Requeue…" letter="r" title={`Requeue ${task.kind}?`} verb="Requeue the task" run={() => requeueTask(task.id)}>
          <p>The task begins again with its first attempt, and agents are asked for offers. What earlier attempts had as effects stays.</p>
        </Command>
      ) : null}
      <RaiseBudget task={task} />
    </div>
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
