const STEPS_MS = [200, 500, 1000, 2000, 5000];

/** Returns the pause after a failure; `failures` counts those before it. */
export const backoffMs = (failures: number): number => STEPS_MS[Math.min(failures, STEPS_MS.length - 1)] ?? 5000;
