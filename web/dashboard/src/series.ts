// Figures over time: rates of what is counted, and the points of a chart.
import type { Series } from "./types.ts";

/** Points of a chart: neighbours become their mean. */
const POINTS = 90;

/** What a counter rose by in a second, between each two samples. Unknown after a restart, which begins at 0 again. */
export function rates(times: readonly number[], values: readonly (number | null)[]): (number | null)[] {
  return values.map((value, at) => {
    const [before, from, to] = [values[at - 1], times[at - 1], times[at]];
    if (typeof value !== "number" || typeof before !== "number" || from === undefined || to === undefined) return null;
    return value < before || to <= from ? null : (value - before) / (to - from);
  });
}

/** The means of `size` neighbours at a time; unknown where none of them is known. */
export function means(values: readonly (number | null)[], size: number): (number | null)[] {
  return Array.from({ length: Math.ceil(values.length / size) }, (_, at) => {
    const known = values.slice(at * size, (at + 1) * size).filter((value) => value !== null);
    return known.length ? known.reduce((sum, value) => sum + value, 0) / known.length : null;
  });
}

/** The path of a line in a box of 100 × 30 with 0 at the bottom; a gap where a value is unknown. */
export function path(values: readonly (number | null)[]): string {
  const most = Math.max(1e-9, ...values.map((value) => value ?? 0));
  let isDrawing = false;
  const steps = values.map((value, at) => {
    if (value === null) {
      isDrawing = false;
      return "";
    }
    const step = `${isDrawing ? "L" : "M"}${((at / Math.max(1, values.length - 1)) * 100).toFixed(2)} ${(29 - (value / most) * 28).toFixed(2)}`;
    isDrawing = true;
    return step;
  });
  return steps.join("");
}

/** The values of a metric, at most about `POINTS`, with the times of their ends. A counter is what it rises by in a second. */
export function pointsOf(name: string, { times, values }: Series): { values: (number | null)[]; times: number[] } {
  const kept = values[name] ?? [];
  const all = name.endsWith("_total") ? rates(times, kept) : kept;
  const size = Math.max(1, Math.ceil(all.length / POINTS));
  const shown = means(all, size);
  return { values: shown, times: shown.map((_, at) => times[Math.min(times.length - 1, (at + 1) * size - 1)] ?? 0) };
}
