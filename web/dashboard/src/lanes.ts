// How the bars of an agent are put into rows.
import type { Bar } from "./types.ts";

/** The bars in rows in which none overlaps another, at most `rowsMax`: the last row takes what fits nowhere. */
export function packed(bars: readonly Bar[], to: number, rowsMax: number): Bar[][] {
  const rows: { bars: Bar[]; end: number }[] = [];
  for (const bar of [...bars].sort((a, b) => Date.parse(a.awarded_at) - Date.parse(b.awarded_at))) {
    const begin = Date.parse(bar.awarded_at);
    const end = bar.ended_at ? Date.parse(bar.ended_at) : to;
    const free = rows.find((row) => row.end <= begin) ?? (rows.length >= rowsMax ? rows.at(-1) : undefined);
    if (free) {
      free.bars.push(bar);
      free.end = Math.max(free.end, end);
    } else rows.push({ bars: [bar], end });
  }
  return rows.map((row) => row.bars);
}

/** A range of time in milliseconds. */
export interface Range {
  from: number;
  to: number;
}

const DAY_MS = 86_400_000;
/** The shortest range that is shown. */
const LEAST_MS = 1000;

/** The range that the address names by `from` and `to`, or by `to` alone; `null` for one that follows the present. */
export function rangeOf(from: string | null, to: string | null, lengthMs: number): Range | null {
  const end = Date.parse(to ?? "");
  if (!Number.isFinite(end)) return null;
  const begin = Date.parse(from ?? "");
  const isRange = begin < end && end - begin <= DAY_MS;
  return { from: isRange ? begin : end - lengthMs, to: end };
}

/** The part of a range between two shares of it, in either order; at least a second. */
export function chosen({ from, to }: Range, a: number, b: number): Range {
  const at = (share: number): number => Math.round(from + share * (to - from));
  const begin = at(Math.min(a, b));
  return { from: begin, to: Math.max(begin + LEAST_MS, at(Math.max(a, b))) };
}

/** The parameters of the address for a range. */
export function rangeParams({ from, to }: Range): { from: string; to: string } {
  return { from: new Date(from).toISOString(), to: new Date(to).toISOString() };
}
