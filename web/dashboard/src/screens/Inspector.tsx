// The task of the selected row beside the list, short: who has it and why, the last offers, and its input.
import type { JSX } from "preact";
import { readWhy } from "../api.ts";
import { pretty } from "../exact.ts";
import { money, score, shortId } from "../format.ts";
import { concernsTask } from "../live.ts";
import { useRead } from "../read.ts";
import { href } from "../route.ts";
import { ONE } from "../score.ts";
import { seesData } from "../session.ts";
import type { Round, Why } from "../types.ts";
import { AgentDot, Ago, OfferBar, Progress, State, TaskLink, Trouble } from "../ui.tsx";
import { needOf } from "./Answer.tsx";
import { Verdict } from "./Why.tsx";

const OFFERS_SHOWN = 5;
const CHARS_SHOWN = 600;

export function Inspector({ org, id, onClose }: { org: string; id: string; onClose: () => void }): JSX.Element {
  const { data, error } = useRead(`why ${id}`, (abort) => readWhy(id, abort), concernsTask(id), 250).value;
  // What was read of another task goes at once.
  const why = data?.task.id === id ? data : null;
  return (
    <aside class="inspector panel" aria-label="Inspector">
      <header><h2>{why?.task.kind ?? "Task"} <code title={id}>{shortId(id)}</code></h2><button type="button" class="quiet small" title="Close (i)" onClick={onClose}>✕<span class="hidden"> Close the inspector</span></button></header>
      {error ? <Trouble problem={error} /> : null}
      {why ? <Short org={org} why={why} /> : error ? null : <p role="status">Loading…</p>}
    </aside>
  );
}

function Short({ org, why }: { org: string; why: Why }): JSX.Element {
  const { task, attempts, paid } = why;
  const live = attempts.find((attempt) => !attempt.ended_at);
  const last = why.rounds.at(-1);
  const need = needOf(why);
  const input = seesData.value && task.input !== null ? pretty(task.input) : "";
  return (
    <>
      <p class="facts">
        <State state={task.state} reason={task.state_reason} />
        {live && live.progress !== null ? <Progress value={live.progress} label="Progress" /> : null}
        <span><span class="soft">requested</span> <Ago at={task.created_at} /></span>
        <span><span class="soft">attempt</span> {task.attempt} / {task.attempts_max}</span>
        {paid.microdollars ? <span>{money(paid.microdollars)}</span> : null}
      </p>
      <Verdict why={why} />
      {last?.offers.length ? <Bids round={last} /> : null}
      {need ? <p class="notice wait"><TaskLink org={org} id={task.id}>It waits for a person: {need}</TaskLink></p> : null}
      {input ? <><h3>Input</h3><pre tabIndex={0}>{input.slice(0, CHARS_SHOWN)}{input.length > CHARS_SHOWN ? " …" : ""}</pre></> : null}
      <p class="inline">
        <a class="button" href={href(org, "tasks", task.id)}>Open the task</a>
        <a href={href(org, "tasks", task.id, "events")}>Events</a>
        <a href={href(org, "tasks", task.id, "data")}>Data</a>
      </p>
    </>
  );
}

function Bids({ round }: { round: Round }): JSX.Element {
  const offers = [...round.offers].sort((a, b) => (b.score?.total ?? -1) - (a.score?.total ?? -1));
  return (
    <ol class="bids" aria-label={`Offers of round ${round.round}`}>
      {offers.slice(0, OFFERS_SHOWN).map((offer) => (
        <li key={offer.agent_id} class={`bid ${offer.agent_id === round.winner ? "won" : ""}`}>
          <span class="who"><AgentDot id={offer.agent_id} />{offer.agent_id}</span>
          <OfferBar offer={offer} award={round.award} weights={round.weights} />
          <span class="total">{offer.score && offer.score.total <= ONE ? score(offer.score.total) : ""}</span>
        </li>
      ))}
      {offers.length > OFFERS_SHOWN ? <li class="soft">and {offers.length - OFFERS_SHOWN} more</li> : null}
    </ol>
  );
}
