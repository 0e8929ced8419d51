// The agents of the org, and one agent with its measurements.
import { useSignal } from "@preact/signals";
import type { JSX } from "preact";
import { readAgentLines, readDefinition, readFeed, readLines, setDrained } from "../api.ts";
import { pretty } from "../exact.ts";
import { Command } from "../dialog.tsx";
import { count, duration, money, now, subject } from "../format.ts";
import { useRead } from "../read.ts";
import { href, query, setQuery } from "../route.ts";
import { Problem, isOperator } from "../session.ts";
import { type AgentLine, FINAL, type FeedEvent, type Line, type Statistics } from "../types.ts";
import { AgentDot, AgentLink, Ago, Empty, Panel, Progress, Slots, State, TaskLink, Trouble, Twin } from "../ui.tsx";
import { words } from "../words.ts";
import { NoAgents } from "./Switchboard.tsx";

const HELD = "awarded,running,waiting,verifying,canceling";

interface Here {
  agents: AgentLine[];
  held: Line[];
}

async function readHere(abort: AbortSignal): Promise<Here> {
  const [agents, held] = await Promise.all([readAgentLines(abort), readLines({ state: HELD, limit: 200 }, abort)]);
  return { agents, held: held.tasks };
}

function sums(agent: AgentLine): { completed: number; failed: number; refused: number } {
  const all = Object.values(agent.statistics);
  const sum = (of: (one: Statistics) => number): number => all.reduce((total, one) => total + of(one), 0);
  return { completed: sum((one) => one.completed), failed: sum((one) => one.failed), refused: sum((one) => one.refused) };
}

type Order = "name" | "completed" | "failed" | "reputation";
const ORDERS: readonly [Order, string][] = [["name", "by name"], ["completed", "most completed"], ["failed", "most failed"], ["reputation", "lowest reputation"]];

function sorted(agents: readonly AgentLine[], order: Order): AgentLine[] {
  const key = (agent: AgentLine): number => (order === "name" ? 0 : order === "reputation" ? agent.reputation : -sums(agent)[order]);
  return [...agents].sort((a, b) => key(a) - key(b) || (a.id < b.id ? -1 : 1));
}

export function Agents({ org }: { org: string }): JSX.Element {
  const { data, error } = useRead(`agents ${org}`, readHere, () => true, 1000).value;
  const order = ORDERS.find(([name]) => name === query.value.get("sort"))?.[0] ?? "name";
  return (
    <>
      <div class="list-head">
        <h1>Agents</h1><a href={href(org, "lanes")}>Lanes</a>
        <div class="inline" role="group" aria-label="Order">{ORDERS.map(([name, text]) => <button key={name} type="button" class="chip" aria-pressed={name === order} onClick={() => setQuery({ sort: name === "name" ? "" : name }, { replace: true })}>{text}</button>)}</div>
      </div>
      {error ? <Trouble problem={error} /> : null}
      {!data && !error ? <p class="boot" role="status">Loading…</p> : null}
      {data && !data.agents.length ? <NoAgents org={org} /> : null}
      {data?.agents.length ? (
        <div class="scroll">
          <table class="agents">
            <caption class="hidden">Agents of {org}</caption>
            <thead><tr><th>Agent</th><th>Kind</th><th>Status</th><th>Slots</th><th>Works on</th><th class="number">Completed</th><th class="number">Failed</th><th class="number">Refused</th><th class="number">Offers won</th><th class="number">Reputation</th></tr></thead>
            <tbody>{sorted(data.agents, order).map((agent) => <Row key={agent.id} org={org} agent={agent} held={data.held.filter((line) => line.agent_id === agent.id)} />)}</tbody>
          </table>
        </div>
      ) : null}
    </>
  );
}

/** Offers that won, of all that were compared since the daemon started. */
function offers({ offers: { won, lost } }: AgentLine): string {
  const all = won + Object.values(lost).reduce((sum, n) => sum + n, 0);
  return all ? `${count(won)} of ${count(all)}` : "–";
}

function Status({ agent }: { agent: AgentLine }): JSX.Element {
  const isHere = agent.status === "present";
  if (isHere && agent.drained_at) return <span class="state state-waiting"><span aria-hidden="true">◐</span> {agent.slots_used ? "draining" : "drained"}</span>;
  return <span class={`state ${isHere ? (agent.slots_used ? "state-running" : "state-completed") : "state-canceled"}`}><span aria-hidden="true">{isHere ? "●" : "○"}</span> {isHere ? (agent.slots_used ? "working" : "idle") : "gone"}</span>;
}

function Row({ org, agent, held }: { org: string; agent: AgentLine; held: Line[] }): JSX.Element {
  const { completed, failed, refused } = sums(agent);
  return (
    <tr class={agent.status === "present" ? "" : "gone"}>
      <th scope="row" data-label="Agent"><AgentLink org={org} id={agent.id} />{agent.description ? <small class="soft">{agent.description}</small> : null}{agent.problem ? <small class="bad">left out: {agent.problem}</small> : null}</th>
      <td data-label="Kind">{agent.kind}</td>
      <td data-label="Status"><Status agent={agent} /></td>
      <td data-label="Slots"><Slots used={agent.slots_used} all={agent.slots} /></td>
      <td data-label="Works on">
        {held.length ? <ul class="plain">{held.slice(0, 3).map((line) => <li key={line.id}><TaskLink org={org} id={line.id}>{line.kind}</TaskLink> {line.progress !== null ? <Progress value={line.progress} label="Progress" /> : <small class="soft">{line.state}</small>}</li>)}{held.length > 3 ? <li><a href={`${href(org, "tasks")}?state=${HELD}&agent=${agent.id}`}>{held.length - 3} more</a></li> : null}</ul> : <span class="soft">–</span>}
      </td>
      <td data-label="Completed" class="number">{count(completed)}</td>
      <td data-label="Failed" class="number">{failed ? <a href={`${href(org, "tasks")}?state=failed&agent=${agent.id}`}>{count(failed)}</a> : 0}</td>
      <td data-label="Refused" class="number">{count(refused)}</td>
      <td data-label="Offers won" class="number">{offers(agent)}</td>
      <td data-label="Reputation" class="number">{agent.reputation.toFixed(2)}</td>
    </tr>
  );
}

interface One {
  agent: AgentLine;
  held: Line[];
  last: Line[];
  events: FeedEvent[];
}

async function readOne(id: string, abort: AbortSignal): Promise<One> {
  const [agents, held, last, feed] = await Promise.all([
    readAgentLines(abort),
    readLines({ state: HELD, agent_id: id, limit: 20 }, abort),
    readLines({ agent_id: id, limit: 20 }, abort),
    readFeed({ agent_id: id, limit: 20 }, abort),
  ]);
  const agent = agents.find((one) => one.id === id);
  if (!agent) throw new Problem(404, "unknown_agent", `no agent ${id} of this org is known`);
  return { agent, held: held.tasks, last: last.tasks, events: feed.events };
}

export function Agent({ org, id }: { org: string; id: string }): JSX.Element {
  const { data, error } = useRead(`agent ${id}`, (abort) => readOne(id, abort), () => true, 1000).value;
  if (!data) return <><h1><AgentDot id={id} />{id}</h1>{error ? <Trouble problem={error} /> : <p class="boot" role="status">Loading…</p>}</>;
  const { agent, held, last, events } = data;
  const kinds = Object.entries(agent.statistics);
  return (
    <>
      <header class="task-head">
        <h1><AgentDot id={id} />{id}</h1>
        {agent.description ? <p>{agent.description}</p> : null}
        <p class="facts">
          <Status agent={agent} /><span>{agent.kind}</span><Slots used={agent.slots_used} all={agent.slots} />
          <span><span class="soft">reputation</span> {agent.reputation.toFixed(3)}</span>
          <span><span class="soft">does</span> {agent.capabilities.join(", ") || "nothing"}</span>
          {agent.last_seen_at ? <span><span class="soft">last seen</span> <Ago at={agent.last_seen_at} /></span> : null}
        </p>
      </header>
      {agent.problem ? <div class="notice bad" role="alert"><strong>The daemon leaves this agent out: {agent.problem}</strong><p>Set it in the daemon's environment and start the daemon again.</p></div> : null}
      <Drain agent={agent} />
      {error ? <Trouble problem={error} /> : null}
      <div class="board">
        <div class="column">
          <Panel title="Works on">
            {held.length ? <ul class="rows">{held.map((line) => <li key={line.id}><TaskLink org={org} id={line.id}><b>{line.kind}</b></TaskLink>{line.progress !== null ? <Progress value={line.progress} label="Progress" /> : null}<small>{line.state} · {duration(now.value - Date.parse(line.created_at))} since its request</small></li>)}</ul> : <p class="soft">Nothing now.</p>}
          </Panel>
          <Offers agent={agent} />
          {kinds.length ? kinds.map(([kind, of]) => <Calibration key={kind} kind={kind} of={of} />) : null}
        </div>
        <div class="column wide">
          <Panel title="Measured">
            {kinds.length ? (
              <div class="scroll" tabIndex={0} role="region" aria-label="Measurements by kind of task"><table>
                <caption class="hidden">Measurements by kind of task</caption>
                <thead><tr><th>Kind</th><th class="number">Completed</th><th class="number">Failed</th><th class="number">Refused</th><th class="number">Late</th><th class="number">Time</th><th class="number">Cost</th><th class="number">Reputation</th></tr></thead>
                <tbody>{kinds.map(([kind, of]) => <tr key={kind}><th scope="row">{kind}</th><td class="number">{count(of.completed)}</td><td class="number">{count(of.failed)}</td><td class="number">{count(of.refused)}</td><td class="number">{count(of.late)}</td><td class="number">{of.latency_ms === null ? "–" : duration(of.latency_ms)}</td><td class="number">{money(of.cost_microdollars)}</td><td class="number">{of.reputation.toFixed(3)}</td></tr>)}</tbody>
              </table></div>
            ) : <p class="soft">It has ended no task yet.</p>}
          </Panel>
          <Panel title="Last tasks" aside={<a href={`${href(org, "tasks")}?agent=${encodeURIComponent(id)}`}>All</a>}>
            {last.length ? <ul class="rows">{last.map((line) => <li key={line.id}><TaskLink org={org} id={line.id}><b>{line.kind}</b> <span class="preview">{subject(line)}</span></TaskLink><small><State state={line.state} reason={line.state_reason} /> · <Ago at={line.created_at} />{FINAL.has(line.state) ? ` · took ${duration(Date.parse(line.updated_at) - Date.parse(line.created_at))}` : ""}</small></li>)}</ul> : <Empty title="No task" />}
          </Panel>
          <Panel title="Last events">
            {events.length ? <ol class="rows">{events.map((event) => <li key={event.seq}><span><b>{words(event.type)}</b>{event.task_id ? <> · <TaskLink org={org} id={event.task_id} /></> : null}{event.epoch ? <span class="soft"> · epoch {event.epoch}</span> : null}</span><small><Ago at={event.at} /></small></li>)}</ol> : <p class="soft">None among the newest 200,000 events.</p>}
          </Panel>
          {isOperator.value && agent.limits ? <Definition id={id} version={agent.definition_version} /> : null}
        </div>
      </div>
    </>
  );
}

/** What it promises, what it may use, and why its offers lost. */
function Offers({ agent: { terms, limits, spent_last_hour, offers: { won, lost } } }: { agent: AgentLine }): JSX.Element {
  const all = won + Object.values(lost).reduce((sum, n) => sum + n, 0);
  const share = (n: number): string => `${count(n)} (${Math.round((n / all) * 100)} %)`;
  const perHour = limits?.microdollars_per_hour;
  return (
    <Panel title="Offers">
      <dl>
        {terms?.eta ? <><dt>promises</dt><dd>{money(terms.cost_microdollars)} and {terms.eta}{terms.confidence === undefined ? "" : `, confidence ${terms.confidence}`}</dd></> : null}
        {spent_last_hour !== null ? <><dt>spent in the last hour</dt><dd>{money(spent_last_hour)}{perHour === undefined ? "" : ` of ${money(perHour)}`}</dd></> : null}
        {all ? <><dt>won</dt><dd>{share(won)}</dd></> : null}
        {Object.entries(lost).sort(([, a], [, b]) => b - a).map(([part, n]) => <><dt>lost by {part}</dt><dd>{share(n)}</dd></>)}
      </dl>
      {all ? <p class="soft">Since the daemon started.</p> : <p class="soft">No offer of it was compared since the daemon started.</p>}
    </Panel>
  );
}

/** Its file, read when it is opened. */
function Definition({ id, version }: { id: string; version: number }): JSX.Element {
  const isOpen = useSignal(false);
  return (
    <Panel title="Definition" aside={<span class="soft">version {version}</span>}>
      <details onToggle={(event) => (isOpen.value = event.currentTarget.open)}>
        <summary>The file as it was read, with the names of variables only</summary>
        {isOpen.value ? <File id={id} /> : null}
      </details>
    </Panel>
  );
}

function File({ id }: { id: string }): JSX.Element {
  const { data, error } = useRead(`definition ${id}`, (abort) => readDefinition(id, abort), () => false).value;
  if (error) return <Trouble problem={error} />;
  return data ? <pre tabIndex={0}>{pretty(data)}</pre> : <p class="soft" role="status">Loading…</p>;
}

function Drain({ agent }: { agent: AgentLine }): JSX.Element {
  return (
    <>
      {agent.drained_at ? <div class="notice wait"><strong>Drained since <Ago at={agent.drained_at} /> by {agent.drained_by ?? "somebody"}</strong><p>It gets no new task{agent.slots_used ? " and finishes what it has" : ""}. Tasks that only it can do wait.</p></div> : null}
      <div class="inline actions">
        {agent.drained_at ? (
          <Command key="resume" label="Resume…" letter="d" title={`Resume ${agent.id}?`} verb="Resume the agent" run={() => setDrained(agent.id, false)}><p>It is asked for offers again.</p></Command>
        ) : (
          <Command key="drain" label="Drain…" letter="d" title={`Drain ${agent.id}?`} verb="Drain the agent" run={() => setDrained(agent.id, true)}><p>It gets no new task and finishes what it has, also after restarts, until somebody resumes it.</p></Command>
        )}
      </div>
    </>
  );
}

/** Promised confidence against success: on the diagonal an agent is as good as it says. */
function Calibration({ kind, of }: { kind: string; of: Statistics }): JSX.Element | null {
  if (!of.calibration.length) return null;
  const points = of.calibration.map(({ confidence, attempts, completed }) => ({ x: Number.parseFloat(confidence) + 0.05, y: completed / attempts, attempts, completed, confidence }));
  const most = Math.max(...points.map(({ attempts }) => attempts));
  const off = points.reduce((sum, { x, y, attempts }) => sum + (y - x) * attempts, 0) / points.reduce((sum, { attempts }) => sum + attempts, 0);
  const verdict = Math.abs(off) < 0.1 ? "It is about as good as it says." : off > 0 ? "It is better than it says." : "It is worse than it says.";
  const chart = (
    <figure>
      <svg class="calibration" viewBox="0 -6 122 116" role="img" aria-label={`Success by promised confidence. ${verdict}`}>
        <path class="grid" d="M14 4V94H114M14 49H114M64 4V94" />
        <path class="diagonal" d="M14 94L114 4" />
        {points.map(({ x, y, attempts, completed, confidence }) => <circle key={confidence} cx={14 + x * 100} cy={94 - y * 90} r={2 + 4 * Math.sqrt(attempts / most)}><title>{`confidence ${confidence}: ${completed} of ${attempts} completed`}</title></circle>)}
        <text x="14" y="104">0</text><text x="60" y="104">confidence</text><text x="110" y="104">1</text><text x="4" y="10">1</text><text x="4" y="94">0</text>
      </svg>
      <figcaption>{verdict}</figcaption>
    </figure>
  );
  const table = (
    <table><caption class="hidden">Success of {kind} by promised confidence</caption>
      <thead><tr><th>Confidence</th><th class="number">Attempts</th><th class="number">Completed</th></tr></thead>
      <tbody>{points.map(({ confidence, attempts, completed }) => <tr key={confidence}><td>{confidence}</td><td class="number">{attempts}</td><td class="number">{completed}</td></tr>)}</tbody>
    </table>
  );
  return <Panel title={`Calibration: ${kind}`}><Twin label={`Calibration of ${kind}`} chart={chart} table={table} /></Panel>;
}
