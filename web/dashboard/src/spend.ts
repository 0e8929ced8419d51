// Sums of what attempts used. Pure.
import type { Spent } from "./types.ts";

const HOUR_MS = 3_600_000;

export type Group = "agent" | "kind";

/** Each hour of the range up to now with its money, also hours without any. */
export function byHour(rows: readonly Spent[], now: number, days: number): { hour: string; microdollars: number }[] {
  const last = Math.floor(now / HOUR_MS) * HOUR_MS;
  const sums = new Map<number, number>();
  for (const row of rows) sums.set(Date.parse(row.hour), (sums.get(Date.parse(row.hour)) ?? 0) + row.microdollars);
  return Array.from({ length: days * 24 }, (_, at) => {
    const hour = last - (days * 24 - 1 - at) * HOUR_MS;
    return { hour: new Date(hour).toISOString(), microdollars: sums.get(hour) ?? 0 };
  });
}

export interface Sum {
  name: string;
  attempts: number;
  tokens: number;
  microdollars: number;
  reserved: number;
  presumed: boolean;
}

/** The sums of each agent or kind, the dearest first. */
export function grouped(rows: readonly Spent[], by: Group): Sum[] {
  const sums = new Map<string, Sum>();
  for (const row of rows) {
    const name = by === "agent" ? row.agent_id : row.kind;
    const known = sums.get(name) ?? { name, attempts: 0, tokens: 0, microdollars: 0, reserved: 0, presumed: false };
    sums.set(name, { name, attempts: known.attempts + row.attempts, tokens: known.tokens + row.tokens, microdollars: known.microdollars + row.microdollars, reserved: known.reserved + row.reserved, presumed: known.presumed || row.presumed });
  }
  return [...sums.values()].sort((a, b) => b.microdollars - a.microdollars || (a.name < b.name ? -1 : 1));
}
