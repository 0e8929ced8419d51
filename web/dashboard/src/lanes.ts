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
