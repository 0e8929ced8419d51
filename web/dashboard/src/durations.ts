// How the durations of tasks are spread: a few steps that grow by three, as people compare times.

/** Upper limits in milliseconds; the last step has none. */
export const LIMITS: readonly number[] = [100, 300, 1000, 3000, 10_000, 30_000, 60_000, 300_000, 900_000, 3_600_000];

/** How many durations are in each step, the slowest without a limit last. */
export function spread(durations: readonly number[]): number[] {
  const steps = Array.from({ length: LIMITS.length + 1 }, () => 0);
  for (const ms of durations) {
    const at = LIMITS.findIndex((limit) => ms <= limit);
    const step = at < 0 ? LIMITS.length : at;
    steps[step] = (steps[step] ?? 0) + 1;
  }
  return steps;
}

/** The duration that a share of all does not exceed; `NaN` for none. */
export function quantile(durations: readonly number[], share: number): number {
  const sorted = [...durations].sort((a, b) => a - b);
  return sorted[Math.max(0, Math.ceil(sorted.length * share) - 1)] ?? Number.NaN;
}
