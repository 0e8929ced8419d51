// The offers of a round: as bars, as a table, and how the totals of many are spread.
import type { JSX } from "preact";
import { quantile } from "../durations.ts";
import { count, duration, money, score } from "../format.ts";
import { ONE } from "../score.ts";
import { DRAWN, STEPS, drawnPlaces, spreadOfTotals, stepOf } from "../totals.ts";
import { type Offer, PARTS, type Round } from "../types.ts";
import { AgentLink, At, OfferBar, Twin, left } from "../ui.tsx";
import { words } from "../words.ts";
import { Histogram } from "./Histogram.tsx";

export function RoundOffers({ org, round, offers }: { org: string; round: Round; offers: Offer[] }): JSX.Element {
  return (
    <>
      {offers.length > DRAWN ? <Totals round={round} offers={offers} /> : null}
      <Twin label={`Offers of round ${round.round}`} chart={<Bars org={org} round={round} offers={offers} />} table={<OfferTable round={round} offers={offers} />} />
    </>
  );
}

function fateOf(offer: Offer, round: Round): string {
  const turn = round.awards.findIndex((award) => award.agent_id === offer.agent_id);
  const awarded = turn < 0 ? "" : round.awards.length > 1 ? `awarded (${turn + 1}.)` : "awarded";
  switch (offer.state) {
    case "awarded": case "confirmed": return awarded || "awarded";
    case "open": return round.winner ? (left(offer.valid_until ?? null) ? `standby, ${left(offer.valid_until ?? null)}` : "standby") : "offered";
    case "refused": return awarded ? `${awarded}, then refused or lost` : "refused";
    default: return awarded ? `${awarded}, ${words(offer.state ?? "")}` : words(offer.state ?? "");
  }
}

function isTied(offers: Offer[], at: number): boolean {
  const total = offers[at]?.score?.total;
  return total !== undefined && (offers[at - 1]?.score?.total === total || offers[at + 1]?.score?.total === total);
}

/** The place of the offer that was awarded last; -1 if none was. */
function winnerOf(round: Round, offers: Offer[]): number {
  const won = round.awards.at(-1)?.agent_id;
  return offers.findIndex((offer) => offer.agent_id === won);
}

/** How the totals are spread. A round by arrival, by name or by choice has none that mean something. */
function Totals({ round, offers }: { round: Round; offers: Offer[] }): JSX.Element | null {
  const totals = offers.flatMap(({ score }) => (score && score.total <= ONE ? [score.total] : []));
  if (!totals.length || round.award === "first" || round.award === "direct" || round.award === "requester") return null;
  const won = offers[winnerOf(round, offers)]?.score?.total;
  const steps = spreadOfTotals(totals).map((n, at) => ({ n, label: `${(at / STEPS).toFixed(2)} to ${((at + 1) / STEPS).toFixed(2)}`, ...(won !== undefined && stepOf(won) === at ? { mark: "won" } : {}) }));
  const best = Math.max(...totals);
  const sentence = `Of ${count(totals.length)} totals, the best is ${score(best)}, half are at most ${score(quantile(totals, 0.5))}${won !== undefined && won !== best ? `, and the winner's is ${score(won)}` : ""}.`;
  return <Histogram label={`Totals of round ${round.round}`} sentence={sentence} unit="Total" counted="Offers" steps={steps} />;
}

function Bars({ org, round, offers }: { org: string; round: Round; offers: Offer[] }): JSX.Element {
  const winner = winnerOf(round, offers);
  const places = drawnPlaces(offers.length, winner);
  return (
    <ol class="offers">
      {places.map((at) => <Bar key={offers[at]!.agent_id} org={org} round={round} offers={offers} at={at} isWinner={at === winner} />)}
      {offers.length > places.length ? <li class="soft">{offers.length - places.length} more offers: “Show as table” lists all.</li> : null}
    </ol>
  );
}

function Bar({ org, round, offers, at, isWinner }: { org: string; round: Round; offers: Offer[]; at: number; isWinner: boolean }): JSX.Element {
  const offer = offers[at]!;
  return (
    <li class={isWinner ? "offer won" : "offer"}>
      <span class="rank">{at + 1}</span>
      <AgentLink org={org} id={offer.agent_id} />
      <OfferBar offer={offer} award={round.award} weights={round.weights} />
      <span class="total">{offer.score ? (offer.score.total > ONE ? "chosen" : `${isTied(offers, at) ? "≈ " : ""}${score(offer.score.total)}`) : <span class="soft" title={round.closed_at ? "the agent could not take the task when the round closed" : "scores are computed when the round closes"}>{round.closed_at ? "not ranked" : "–"}</span>}</span>
      <span class="terms soft">{money(offer.cost_microdollars)} · {duration(offer.eta_ms)} · {Math.round(offer.confidence * 100)} % sure</span>
      <span class="fate">{isWinner ? <b>{fateOf(offer, round)}</b> : fateOf(offer, round)}</span>
      {offer.note ? <span class="note soft">“{offer.note}”</span> : null}
    </li>
  );
}

function OfferTable({ round, offers }: { round: Round; offers: Offer[] }): JSX.Element {
  return (
    <table>
      <caption class="hidden">Offers of round {round.round}</caption>
      <thead><tr><th>Rank</th><th>Agent</th><th>Fate</th><th class="number">Total</th>{PARTS.map((part) => <th key={part} class="number">{part}{round.weights ? ` × ${round.weights[part]}` : ""}</th>)}<th class="number">Cost</th><th class="number">Time</th><th class="number">Confidence</th><th>Offered</th><th>Valid until</th></tr></thead>
      <tbody>
        {offers.map((offer, at) => (
          <tr key={offer.agent_id}>
            <td>{at + 1}</td><th scope="row">{offer.agent_id}</th><td>{fateOf(offer, round)}</td>
            <td class="number">{offer.score ? (offer.score.total > ONE ? "chosen" : (offer.score.total / ONE).toFixed(6)) : "–"}</td>
            {PARTS.map((part) => <td key={part} class="number">{offer.score ? (offer.score[part] / ONE).toFixed(6) : "–"}</td>)}
            <td class="number">{money(offer.cost_microdollars)}</td><td class="number">{duration(offer.eta_ms)}</td><td class="number">{offer.confidence}</td>
            <td>{offer.offered_at ? <At at={offer.offered_at} millis /> : "–"}</td><td>{offer.valid_until ? <At at={offer.valid_until} /> : "–"}</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}
