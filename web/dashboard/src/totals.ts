// The totals of a round with many offers: how they are spread, and which offers are drawn.
import { ONE } from "./score.ts";

/** Steps of a histogram of totals. */
export const STEPS = 20;
/** The best offers of a round, which are drawn. */
export const DRAWN = 40;
/** Offers on each side of the winner that are drawn, too. */
const NEAR = 2;

/** The step of a total in millionths; a whole one is in the last. */
export function stepOf(total: number): number {
  return Math.min(STEPS - 1, Math.max(0, Math.floor((total * STEPS) / ONE)));
}

/** How many totals are in each step. */
export function spreadOfTotals(totals: readonly number[]): number[] {
  const steps = Array.from({ length: STEPS }, () => 0);
  for (const total of totals) steps[stepOf(total)]! += 1;
  return steps;
}

/** Places of the offers that are drawn, of `count` in the order of their rank: the best, and those around the winner (-1: nobody won). */
export function drawnPlaces(count: number, winner: number): number[] {
  return Array.from({ length: count }, (_, place) => place).filter((place) => place < DRAWN || (winner >= 0 && Math.abs(place - winner) <= NEAR));
}
