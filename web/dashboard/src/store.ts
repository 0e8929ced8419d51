// The lines of tasks that the page knows. Pure: hints and answers may come in any order, and the highest version of a
// line wins.
import type { Line } from "./types.ts";

/** Lines that are kept; the least recently read go first. */
export const LINES_MAX = 5000;

export type Store = ReadonlyMap<string, Line>;

/** The store with these lines. A line that is older than the known one is ignored. */
export function put(store: Store, lines: readonly Line[]): Store {
  const next = new Map(store);
  for (const line of lines) {
    const known = next.get(line.id);
    const newest = known && known.version > line.version ? known : line;
    // Deleted first: a map keeps the order of insertion, and the end is the most recent.
    next.delete(line.id);
    next.set(line.id, newest);
  }
  for (const id of next.keys()) {
    if (next.size <= LINES_MAX) break;
    next.delete(id);
  }
  return next;
}

/** The current lines of a list that was answered as `page`. */
export function current(store: Store, page: readonly string[]): Line[] {
  return page.flatMap((id) => store.get(id) ?? []);
}
