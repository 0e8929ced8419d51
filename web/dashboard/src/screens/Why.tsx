// Why a task is where it is: each round with its offers and scores, and what became of every award.
import { useComputed, useSignal } from "@preact/signals";
import type { JSX } from "preact";
import { chooseOffer, readAgents } from "../api.ts";
import { useCommand } from "../dialog.tsx";
import { between, duration, money, now, score } from "../format.ts";
import { status } from "../live.ts";
import { useRead } from "../read.ts";
import { query, setQuery } from "../route.ts";
import { WEIGHTS, WHAT_IF, canRank, rank } from "../score.ts";
import { type Attempt, type Award, FINAL, type Offer, PARTS, type Round, type Why as WhyAnswer } from "../types.ts";
import { AgentDot, AgentLink, At, Empty, Legend, Money, Panel, Sentence, left } from "../ui.tsx";
import { words } from "../words.ts";
import { RoundOffers } from "./Offers.tsx";

export function Why({ org, why }: { org: string; why: WhyAnswer }): JSX.Element {
  const { rounds } = why;
  return (
    <>
      <Verdict why={why} />
      <Nobody org={org} why={why} />
      {rounds.length ? (
        <>
          <div class="why-legend"><Legend /></div>
          {rounds.map((round) => <RoundView key={round.round} org={org} round={round} why={why} />)}
        </>
      ) : FINAL.has(why.task.state) ? null : <Empty title="No round yet"><p><Sentence text={waiting(why)} /></p></Empty>}
    </>
  );
}

function waiting(why: WhyAnswer): string {
  if (typeof why.waits_for === "string") return `It waits ${why.waits_for}.`;
  return why.task.state === "open" ? "The task has not been announced yet." : `The task is ${why.task.state}.`;
}

/** Who has it and why, and what it waits for. */
export function Verdict({ why }: { why: WhyAnswer }): JSX.Element {
  const { rounds, attempts, task } = why;
  const last = rounds.at(-1);
  const won = last?.awards.at(-1);
  const failure = task.state === "failed" ? `The task failed: ${words(task.state_reason ?? "no reason is stored")}.` : null;
  const lost = attempts.filter((attempt) => attempt.ended_at && !["finished", "waiting"].includes(attempt.state));
  return (
    <div class="verdict">
      <p class="big">
        {last?.winner && won ? <><AgentDot id={last.winner} /><b>{last.winner}</b> won round {last.round}: {last.because}.</> : <Sentence text={failure ?? waiting(why)} />}
      </p>
      {lost.map((attempt) => <p key={attempt.epoch}>Epoch {attempt.epoch}: {attempt.agent_id} {fate(attempt)}.</p>)}
      {last?.winner && typeof why.waits_for === "string" ? <p><Sentence text={waiting(why)} /></p> : null}
      {failure && last?.winner ? <p>{failure}</p> : null}
    </div>
  );
}

const FATES: Record<string, string> = {
  refused: "refused the award", confirm_timeout: "did not accept in time", start_timeout: "accepted and did not start in time",
  lease_lost: "lost its lease", stalled: "showed no progress", released: "released the task", canceled: "was canceled",
  failed: "failed", rejected: "finished, and the result was rejected",
};

function fate(attempt: Attempt): string {
  const text = FATES[attempt.state] ?? words(attempt.state);
  return attempt.error ? `${text} (${attempt.error})` : text;
}

function RoundView({ org, round, why }: { org: string; round: Round; why: WhyAnswer }): JSX.Element {
  const offers = [...round.offers].sort((a, b) => (b.score?.total ?? -1) - (a.score?.total ?? -1) || (a.score?.waited ?? 0) - (b.score?.waited ?? 0));
  const policy = round.award ?? "not awarded yet";
  const weights = round.weights ? `: ${PARTS.map((part) => `${part} ${round.weights?.[part] ?? 0}`).join(", ")}` : "";
  const attempts = why.attempts.filter((attempt) => round.awards.some((award) => award.assignment_id === attempt.assignment_id));
  return (
    <Panel title={`Round ${round.round}`} class="round" aside={<span class="soft">{words(policy)}{weights}</span>}>
      <Axis round={round} />
      {offers.length ? (
        <RoundOffers org={org} round={round} offers={offers} />
      ) : <p class="soft">Nobody offered.</p>}
      <Silent round={round} />
      {attempts.length ? <Ladder org={org} attempts={attempts} task={why} /> : null}
      {offers.length > 1 ? <WhatIf round={round} offers={offers} /> : null}
    </Panel>
  );
}

/** The offers of the open round, each with a button: the requester chooses. */
export function Choice({ org, why }: { org: string; why: WhyAnswer }): JSX.Element {
  const chosen = useSignal("");
  const { fault, isBusy, act } = useCommand(() => chooseOffer(why.task.id, chosen.value));
  const open = why.rounds.at(-1)?.offers.filter(({ state }) => state === "open") ?? [];
  return (
    <>
      <ul class="choice">
        {open.map((offer) => (
          <li key={offer.agent_id}>
            <AgentLink org={org} id={offer.agent_id} />
            <span class="soft">{money(offer.cost_microdollars)} · {duration(offer.eta_ms)} · {Math.round(offer.confidence * 100)} % sure{offer.note ? ` · “${offer.note}”` : ""}</span>
            <button type="button" class="small" aria-label={`Choose ${offer.agent_id}`} disabled={isBusy.value || status.value === "no connection"} onClick={() => {
              chosen.value = offer.agent_id;
              void act();
            }}>Choose</button>
          </li>
        ))}
      </ul>
      {fault.value ? <p class="bad" role="alert">{fault.value}</p> : null}
    </>
  );
}

/** When the round was announced, when each offer came, and when it closed. */
function Axis({ round }: { round: Round }): JSX.Element {
  const { announced_at, closed_at, bids_close_at } = round;
  if (!announced_at) {
    return <p class="axis-note soft">Announced, offered and awarded in one commit{closed_at ? <> at <At at={closed_at} millis /></> : null}: the offers were computed, so the round took no time.</p>;
  }
  const begin = Date.parse(announced_at);
  const closed = closed_at ? Date.parse(closed_at) : null;
  const window = bids_close_at ? Date.parse(bids_close_at) - begin : null;
  const offered = round.offers.flatMap((offer) => (offer.offered_at ? [{ agent: offer.agent_id, ms: Date.parse(offer.offered_at) - begin }] : []));
  const end = Math.max(1, (closed ?? now.value) - begin, ...offered.map(({ ms }) => ms));
  const scale = end * 1.04;
  const at = (ms: number): string => `${Math.min(100, Math.max(0, (ms / scale) * 100))}%`;
  const summary = `${offered.length} ${offered.length === 1 ? "offer" : "offers"} ${closed ? `in ${duration(closed - begin)}` : "so far"}${window ? `, window ${duration(window)}` : ""}`;
  return (
    <div class="axis" role="img" aria-label={`Announced, ${offered.map(({ agent, ms }) => `${agent} after ${duration(ms)}`).join(", ") || "no offer"}, ${closed ? `closed after ${duration(closed - begin)}` : "still open"}`}>
      <div class="axis-line">
        {closed ? <span class="axis-open" style={{ width: at(closed - begin) }} /> : <span class="axis-open running" style={{ width: "100%" }} />}
        {offered.map(({ agent, ms }) => <span key={agent} class="axis-dot" title={`${agent} offered after ${duration(ms)}`} style={{ left: at(ms) }}><AgentDot id={agent} /></span>)}
        {closed ? <span class="axis-end" style={{ left: at(closed - begin) }} title={`closed after ${duration(closed - begin)}`} /> : null}
      </div>
      <div class="axis-labels"><span>0 ms <span class="soft">announced <At at={announced_at} millis /></span></span><span class="soft">{summary}</span><span>{closed ? `closed ${duration(closed - begin)}` : `closes ${left(bids_close_at) ? `in ${left(bids_close_at)}` : "now"}`}</span></div>
    </div>
  );
}

function Silent({ round }: { round: Round }): JSX.Element | null {
  const { silent } = round;
  if (!silent) return null;
  if (!Array.isArray(silent)) {
    const text = typeof silent === "string" ? silent : Object.entries(silent).map(([name, reason]) => `${name}: ${typeof reason === "string" ? reason : JSON.stringify(reason)}`).join("; ");
    return text ? <p class="silent soft">{text}</p> : null;
  }
  if (!silent.length) return null;
  return (
    <ul class="silent" aria-label="Agents without an offer">
      {silent.map(({ agent_id, reason }) => <li key={`${agent_id} ${reason}`}><AgentDot id={agent_id} /><b>{agent_id}</b> <span class="soft">{reason}</span></li>)}
    </ul>
  );
}

/** Agents whose lack is shown. */
const LACKING_MAX = 20;

/** Why nobody offered, and what would change it: of a task that failed for it, or that waits after such a round. */
function Nobody({ org, why: { task, rounds } }: { org: string; why: WhyAnswer }): JSX.Element | null {
  const last = rounds.at(-1);
  const stored = task.error as { reasons?: unknown } | null;
  const reasons = task.state_reason === "unallocatable" ? stored?.reasons : task.state === "open" && last && !last.offers.length && last.closed_at ? last.silent : null;
  if (typeof reasons !== "string") return null;
  return (
    <Panel title="Nobody offered" class="round">
      <p>{reasons}</p>
      <Lacking org={org} requires={task.requires} />
    </Panel>
  );
}

/** What each agent lacks for a task that none can do. */
function Lacking({ org, requires }: { org: string; requires: string[] }): JSX.Element | null {
  const { data } = useRead(`agents ${org}`, readAgents, ({ agents }) => agents, 5000).value;
  const lacking = (data ?? []).flatMap((agent) => {
    const missing = requires.filter((capability) => !agent.capabilities.includes(capability));
    if (missing.length) return [{ agent, missing, text: `lacks ${missing.join(", ")}` }];
    return agent.status === "present" ? [] : [{ agent, missing, text: "has all of them, and is gone" }];
  });
  if (!lacking.length) return null;
  // Those that lack the least are the nearest to it.
  lacking.sort((a, b) => a.missing.length - b.missing.length || (a.agent.id < b.agent.id ? -1 : 1));
  return (
    <>
      <p class="soft">The task requires {requires.join(", ")}. An agent has the capabilities that its file names.</p>
      <ul class="silent" aria-label="Agents that cannot do it">
        {lacking.slice(0, LACKING_MAX).map(({ agent, text }) => <li key={agent.id}><AgentLink org={org} id={agent.id} /> <span class="soft">{text}</span></li>)}
        {lacking.length > LACKING_MAX ? <li class="soft">and {lacking.length - LACKING_MAX} more</li> : null}
      </ul>
    </>
  );
}

/** What became of each award: one rung an epoch. */
function Ladder({ org, attempts, task }: { org: string; attempts: Attempt[]; task: WhyAnswer }): JSX.Element {
  const ordered = [...attempts].sort((a, b) => a.epoch - b.epoch);
  return (
    <ol class="ladder" aria-label="Awards">
      {ordered.map((attempt) => {
        const isCurrent = attempt.epoch === task.task.epoch;
        const ended = attempt.ended_at;
        return (
          <li key={attempt.epoch} class={`rung ${isCurrent ? "" : "fenced"} end-${attempt.state}`}>
            <span class="epoch" title={isCurrent ? "the current epoch" : "an earlier epoch: what it still says is fenced"}>epoch {attempt.epoch}</span>
            <AgentLink org={org} id={attempt.agent_id} />
            <ol class="steps">
              <li>awarded{attempt.awarded_at ? <> <At at={attempt.awarded_at} millis /></> : null}</li>
              {attempt.started_at ? <li>accepted after {duration(between(attempt.awarded_at, attempt.started_at))}</li> : ended ? null : <li>must accept {left(attempt.confirm_by) ? `within ${left(attempt.confirm_by)}` : "now"}</li>}
              {!ended && attempt.started_at ? <li>{attempt.state === "waiting" ? "waits for an answer" : `running for ${duration(now.value - Date.parse(attempt.started_at))}`}{attempt.activity ? <span class="soft"> {attempt.activity}</span> : null}{left(attempt.lease_until) ? <span class="soft"> · lease {left(attempt.lease_until)}</span> : null}</li> : null}
              {ended ? <li class="end"><b>{attempt.state === "finished" ? "✓ finished" : `✕ ${fate(attempt)}`}</b> after {duration(between(attempt.started_at ?? attempt.awarded_at, ended))}{attempt.paid?.microdollars ? <> · <Money value={attempt.paid.microdollars} presumed={attempt.paid.presumed} /></> : null}</li> : null}
            </ol>
          </li>
        );
      })}
    </ol>
  );
}

const LABELS: Record<string, string> = { weighted: "weighted", cheapest: "cheapest", fastest: "fastest", least_loaded: "least loaded", calibrated: "calibrated", first: "first" };

/** The same offers ranked by another policy, here in the page. Nothing is sent. */
function WhatIf({ round, offers }: { round: Round; offers: Offer[] }): JSX.Element | null {
  const chosen = useComputed(() => query.value.get("if"));
  // The offers of a round of one commit have no order in time.
  const possible = WHAT_IF.filter((award) => award !== round.award && canRank(award, offers) && (award !== "first" || round.announced_at));
  if (!possible.length || !round.winner) return null;
  const award = possible.find((award) => award === chosen.value);
  const ranked = award ? rank(award, round.award === "weighted" ? round.weights : WEIGHTS, offers) : [];
  const [first, second] = ranked;
  const actual = round.awards[0]?.agent_id;
  return (
    <div class="what-if">
      <span id={`if-${round.round}`}>What if the policy were</span>
      <span role="group" aria-labelledby={`if-${round.round}`} class="inline">
        {possible.map((other: Award) => <button key={other} type="button" class="chip" aria-pressed={other === award} onClick={() => setQuery({ if: other === award ? "" : other }, { replace: true })}>{LABELS[other]}</button>)}
      </span>
      <span role="status">
        {first ? <>→ <AgentDot id={first.offer.agent_id} /><b>{first.offer.agent_id}</b> {award === "first" ? "came first" : score(first.total)}{second && award !== "first" ? ` before ${score(second.total)}` : ""} <span class="soft">({first.offer.agent_id === actual ? "the same winner" : `instead of ${actual}`})</span></> : null}
      </span>
    </div>
  );
}
