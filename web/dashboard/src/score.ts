// The ranking of offers, as `src/task/rounds/score.rs` computes it: integers in millionths, divisions that round down.
import { type Award, type Offer, PARTS, type Part, type Score, type Weights } from "./types.ts";

export const ONE = 1_000_000;
/** The weights of a policy that names none. */
export const WEIGHTS: Weights = { cost: 20, speed: 20, confidence: 30, load: 10, reputation: 20 };

export interface Ranked {
  offer: Offer;
  total: number;
}

/** The weighted mean of the parts. */
export function weighted(weights: Weights, score: Score): number {
  const all = PARTS.reduce((sum, part) => sum + weights[part], 0);
  return Math.floor(PARTS.reduce((sum, part) => sum + weights[part] * score[part], 0) / Math.max(1, all));
}

/** What each part contributes to a weighted total, in millionths; they add up to it but for rounding. */
export function segments(weights: Weights, score: Score): { part: Part; share: number }[] {
  const all = Math.max(1, PARTS.reduce((sum, part) => sum + weights[part], 0));
  return PARTS.map((part) => ({ part, share: (weights[part] * score[part]) / all }));
}

/** Policies that can be computed from stored scores. `first` needs the times of the offers. */
export const WHAT_IF: readonly Award[] = ["weighted", "cheapest", "fastest", "least_loaded", "calibrated", "first"];

/** Whether the stored offers of a round suffice to rank them by a policy. */
export function canRank(award: Award, offers: readonly Offer[]): boolean {
  const scored = offers.length > 0 && offers.every((offer) => offer.score);
  if (award === "calibrated") return scored && offers.every((offer) => offer.score?.success !== undefined);
  if (award === "first") return scored && new Set(offers.map((offer) => offer.offered_at)).size === offers.length && offers.every((offer) => offer.offered_at);
  return scored && WHAT_IF.includes(award);
}

/** Ranks offers by a policy, the winner first. Ties go to the longest wait, then to the lower id. */
export function rank(award: Award, weights: Weights | null, offers: readonly Offer[]): Ranked[] {
  const arrival = [...offers].sort((a, b) => inTime(a.offered_at ?? "", b.offered_at ?? ""));
  const ranked = offers.flatMap((offer) => (offer.score ? [{ offer, score: offer.score, total: total(award, weights ?? WEIGHTS, offer.score, arrival.indexOf(offer)) }] : []));
  ranked.sort((a, b) => b.total - a.total || a.score.waited - b.score.waited || (a.offer.agent_id < b.offer.agent_id ? -1 : 1));
  return ranked.map(({ offer, total }) => ({ offer, total }));
}

/** The order of two times in microseconds, of which a `Date` keeps only milliseconds. */
function inTime(a: string, b: string): number {
  const micros = (at: string): string => (/\.(\d+)/.exec(at)?.[1] ?? "").padEnd(6, "0");
  return Date.parse(a) - Date.parse(b) || (micros(a) < micros(b) ? -1 : 1);
}

function total(award: Award, weights: Weights, score: Score, arrival: number): number {
  switch (award) {
    case "cheapest": return score.cost;
    case "fastest": return score.speed;
    case "least_loaded": return score.load;
    case "weighted": return weighted(weights, score);
    case "calibrated": return Math.floor((score.confidence * (score.success ?? 0)) / ONE);
    case "first": return ONE - arrival;
    default: return score.total;
  }
}
