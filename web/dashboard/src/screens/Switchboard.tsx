// The start page: what waits for a person, what is wrong, what is being negotiated, and who is here.
import type { JSX } from "preact";
import { readAgents, readLines, readOverview, readSeries } from "../api.ts";
import { cause, count, score, setClock, since } from "../format.ts";
import { useRead } from "../read.ts";
import { href } from "../route.ts";
import { means, path, rates } from "../series.ts";
import type { Agent, Line, Negotiation, Overview, Series } from "../types.ts";
import { FirstSteps } from "./FirstSteps.tsx";
import { AgentDot, Ago, Empty, Legend, OfferBar, Panel, Slots, TaskLink, Trouble } from "../ui.tsx";
import { words } from "../words.ts";

/** An open task that waits for longer than this is worth a look. */
const OLD_MS = 60_000;
const SHOWN = 6;

interface All {
  overview: Overview;
  waiting: Line[];
  failed: Line[];
  agents: Agent[];
  flow: Series;
}

/** What the sparkline shows: awards of the whole daemon. */
const FLOW = "convoke_tasks_awarded_total";

async function readAll(abort: AbortSignal): Promise<All> {
  const hour = new Date(Date.now() - 3_600_000).toISOString();
  const [overview, waiting, failed, agents, flow] = await Promise.all([
    readOverview(abort),
    readLines({ needs: "input,approval,budget,choice", limit: 50 }, abort),
    readLines({ state: "failed", since: hour, limit: 100 }, abort),
    readAgents(abort),
    readSeries([FLOW], "1s", abort),
  ]);
  setClock(overview.at);
  return { overview, waiting: waiting.tasks, failed: failed.tasks, agents, flow };
}

export function Switchboard({ org }: { org: string }): JSX.Element {
  const { data, error } = useRead(`switchboard ${org}`, readAll, () => true, 1000).value;
  if (!data) return error ? <Trouble problem={error} /> : <p class="boot" role="status">Loading…</p>;
  const { overview, waiting, failed, agents, flow } = data;
  const { ended, states } = overview;
  const never = !overview.awards.length && !Object.keys(states).length && !(ended.completed + ended.failed + ended.canceled);
  return (
    <>
      <h1 class="hidden">Switchboard of {org}</h1>
      {error ? <Trouble problem={error} /> : null}
      <Tiles org={org} overview={overview} flow={flow} />
      <div class="board">
        <div class="column">
          <FirstSteps org={org} agents={agents} awards={overview.awards} />
          <NeedsYou org={org} lines={waiting} />
          <WhatIsWrong org={org} overview={overview} failed={failed} agents={agents} />
          <Plugs org={org} agents={agents} />
        </div>
        <div class="column wide">
          {never ? <NoTasks org={org} agents={agents} /> : <Negotiations org={org} awards={overview.awards} />}
        </div>
      </div>
    </>
  );
}

function Tiles({ org, overview, flow }: { org: string; overview: Overview; flow: Series }): JSX.Element {
  const { states, ended, agents, oldest_open_at } = overview;
  const working = (states.running ?? 0) + (states.awarded ?? 0);
  const needed = Object.values(overview.needs).reduce((sum, n) => sum + n, 0);
  const tasks = (state: string): string => `${href(org, "tasks")}?state=${state}`;
  const tile = (to: string, value: string, label: string, note: string, mark = ""): JSX.Element => (
    <li><a class={`tile ${mark}`} href={to}><b>{value}</b><span>{label}</span><small>{note}</small></a></li>
  );
  return (
    <ul class="tiles">
      {tile(tasks("running,awarded"), count(working), "running", `${agents.slots_used} of ${agents.slots} slots used`, working ? "busy" : "")}
      {tile(tasks("open"), count(states.open ?? 0), "open", oldest_open_at ? `oldest ${since(oldest_open_at)}` : "none waits for an agent")}
      {tile(href(org, "inbox"), count(needed), "need a person", Object.entries(overview.needs).map(([needs, n]) => `${n} ${needs}`).join(", ") || "no questions", needed ? "wait" : "")}
      {tile(`${tasks("completed")}&since=1h`, `${count(ended.completed)}${ended.partial ? "+" : ""}`, "completed", "requested in the last hour", ended.completed ? "good" : "")}
      {tile(`${tasks("failed")}&since=1h`, `${count(ended.failed)}${ended.partial ? "+" : ""}`, "failed", "requested in the last hour", ended.failed ? "bad" : "")}
      {tile(href(org, "agents"), `${agents.present} / ${agents.known}`, "agents here", `${agents.busy} at work`, agents.known && !agents.present ? "bad" : "")}
      <Flow series={flow} />
    </ul>
  );
}

/** Awards of the last 15 minutes, by means of ten seconds. */
function Flow({ series }: { series: Series }): JSX.Element {
  const perSecond = rates(series.times, series.values[FLOW] ?? []);
  const minute = means(perSecond.slice(-60), 60)[0] ?? 0;
  const a = Math.round(minute * 60);
  return (
    <li class="tile flow">
      <b>{count(a)}</b><span>awards a minute</span>
      <svg viewBox="0 0 100 30" preserveAspectRatio="none" role="img" aria-label="Awards of this daemon in the last 15 minutes"><path d={path(means(perSecond, 10))} /></svg>
    </li>
  );
}

function NeedsYou({ org, lines }: { org: string; lines: Line[] }): JSX.Element {
  return (
    <Panel title="Needs you" class="needs" aside={lines.length ? <a href={href(org, "inbox")}>Inbox <span class="badge wait">{lines.length}</span></a> : null}>
      {lines.length ? (
        <ul class="rows">
          {lines.slice(0, SHOWN).map((line) => (
            <li key={line.id}>
              <TaskLink org={org} id={line.id}><b>{line.question ?? (line.needs === "choice" ? `Choose one of ${line.offers} ${line.offers === 1 ? "offer" : "offers"}` : "It waits.")}</b></TaskLink>
              <small>{line.needs ?? "input"} · {line.agent_id ?? line.requester} · {line.kind} · <Ago at={line.updated_at} /></small>
            </li>
          ))}
        </ul>
      ) : <p class="soft">No task waits for a person.</p>}
    </Panel>
  );
}

function WhatIsWrong({ org, overview, failed, agents }: { org: string; overview: Overview; failed: Line[]; agents: Agent[] }): JSX.Element {
  const causes = new Map<string, Line[]>();
  for (const line of failed) {
    const key = cause(line.error ?? words(line.state_reason ?? "failed"));
    causes.set(key, [...(causes.get(key) ?? []), line]);
  }
  const parts = Object.entries(overview.health.parts).filter(([, part]) => part.state !== "ready");
  const gone = agents.filter((agent) => agent.status !== "present");
  const old = overview.oldest_open_at && since(overview.oldest_open_at) && Date.parse(overview.at) - Date.parse(overview.oldest_open_at) > OLD_MS;
  const rows: JSX.Element[] = [
    ...parts.map(([name, part]) => <li key={`part ${name}`}><b>{words(name)}: {part.detail}</b><small>{part.state} on <a href="/health" target="_blank">/health</a></small></li>),
    ...(old && overview.oldest_open_at ? [<li key="old"><a href={`${href(org, "tasks")}?state=open`}><b>A task has been open for {since(overview.oldest_open_at)}</b></a><small>no agent has it yet</small></li>] : []),
    ...[...causes.entries()].sort((a, b) => b[1].length - a[1].length).slice(0, SHOWN).map(([text, lines]) => {
      const last = lines[0];
      return last ? (
        <li key={`cause ${text}`}>
          <TaskLink org={org} id={last.id}><b>{lines.length > 1 ? `${lines.length} failed: ` : "failed: "}{text}</b></TaskLink>
          <small>{last.kind} · last <Ago at={last.updated_at} /></small>
        </li>
      ) : <></>;
    }),
    ...(gone.length ? [<li key="gone"><a href={href(org, "agents")}><b>{gone.length === 1 ? "1 agent is" : `${gone.length} agents are`} gone</b></a><small>{gone.slice(0, 5).map((agent) => agent.id).join(", ")}{gone.length > 5 ? " …" : ""}</small></li>] : []),
  ];
  return (
    <Panel title="Trouble" class="trouble" aside={rows.length ? <span class="badge bad">{rows.length}</span> : null}>
      {rows.length ? <ul class="rows">{rows}</ul> : <p class="soft">Nothing failed in the last hour, and every part of the daemon is ready.</p>}
    </Panel>
  );
}

function Negotiations({ org, awards }: { org: string; awards: Negotiation[] }): JSX.Element {
  return (
    <Panel title="Last negotiations" class="rounds" aside={<Legend />}>
      {awards.length ? (
        <ol class="negotiations">
          {awards.map((award) => <Settled key={`${award.task_id} ${award.epoch}`} org={org} award={award} />)}
        </ol>
      ) : <p class="soft">No task was awarded lately.</p>}
    </Panel>
  );
}

function Settled({ org, award }: { org: string; award: Negotiation }): JSX.Element {
  const [first, second] = award.offers;
  const verdict = award.offers_in_all < 2 || !first?.score || !second?.score ? "alone" : `${score(first.score.total)} : ${score(second.score.total)}`;
  return (
    <li>
      <a class="negotiation" href={href(org, "tasks", award.task_id)}>
        <span class="line">
          <b>{award.kind ?? "a deleted task"}</b>
          <span class="preview">{award.input_preview === "null" ? "" : award.input_preview}</span>
          <small><Ago at={award.at} /></small>
        </span>
        {award.offers.slice(0, 3).map((offer, at) => (
          <span key={offer.agent_id} class={`bid ${at === 0 ? "won" : ""}`}>
            <span class="who"><AgentDot id={offer.agent_id} />{offer.agent_id}</span>
            <OfferBar offer={offer} award={award.award} weights={award.weights} />
            <span class="total">{offer.score && offer.score.total <= 1_000_000 ? score(offer.score.total) : ""}{at === 0 ? <span class="soft"> {verdict === "alone" ? "alone" : "won"}</span> : null}</span>
          </span>
        ))}
      </a>
    </li>
  );
}

function Plugs({ org, agents }: { org: string; agents: Agent[] }): JSX.Element {
  const sorted = [...agents].sort((a, b) => Number(b.status === "present") - Number(a.status === "present") || b.slots_used - a.slots_used || (a.id < b.id ? -1 : 1));
  return (
    <Panel title="Agents" class="here" aside={<a href={href(org, "agents")}>All {agents.length}</a>}>
      {sorted.length ? (
        <ul class="plugs">
          {sorted.slice(0, 12).map((agent) => (
            <li key={agent.id}>
              <a class={`plug ${agent.status === "present" ? "" : "gone"}`} href={href(org, "agents", agent.id)}>
                <span class="agent"><AgentDot id={agent.id} />{agent.id}</span>
                {agent.status === "present" ? <Slots used={agent.slots_used} all={agent.slots} /> : <span class="soft">gone</span>}
              </a>
            </li>
          ))}
        </ul>
      ) : <NoAgents org={org} />}
    </Panel>
  );
}

export function NoAgents({ org }: { org: string }): JSX.Element {
  return (
    <Empty title="No agent of this org is known">
      <p>An agent is a file in the folder <code>agents/</code>. Save this as <code>agents/echo.toml</code>, and the agent is here within seconds:</p>
      <pre tabIndex={0}>{`id = "echo"
org = "${org}"
capabilities = ["echo"]

[run]
kind = "command"
argv = ["cat"]`}</pre>
    </Empty>
  );
}

function NoTasks({ org, agents }: { org: string; agents: Agent[] }): JSX.Element {
  const kind = agents[0]?.capabilities[0] ?? "echo";
  return (
    <Panel title="No task was requested yet" class="rounds">
      <p>Each of these requests one:</p>
      <h3>SQL</h3>
      <pre tabIndex={0}>{`select convoke.request_task('${kind}', '{"text": "hello"}',\n    requires => '{${kind}}', org => '${org}');`}</pre>
      <h3>Shell</h3>
      <pre tabIndex={0}>{`convoke task request ${kind} --requires ${kind} --org ${org} --input '{"text": "hello"}'`}</pre>
      <h3>HTTP, with a token of <code>convoke token --role user --org {org}</code></h3>
      <pre tabIndex={0}>{`curl -H "Authorization: Bearer $TOKEN" -d '{"kind": "${kind}", "requires": ["${kind}"], "input": {"text": "hello"}}' \\\n    ${location.origin}/v1/tasks`}</pre>
    </Panel>
  );
}
