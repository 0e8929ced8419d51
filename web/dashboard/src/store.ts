// The lines of tasks that the page knows. Pure: hints and answers may come in any order, and the highest version of a
// line wins.
import type { Line } from "./types.ts";

/** Lines that are kept; the least recently read go first. */
export const LINES_MAX = 5000;

/** A task in a digest. */
export type Changed = Pick<Line, "id" | "version" | "kind" | "state" | "state_reason" | "agent_id" | "epoch" | "progress">;

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

/** Whether the store has no line of a task, or one of before the change. */
export function isNew(store: Store, change: Changed): boolean {
  const known = store.get(change.id);
  return !known || known.version < change.version || known.progress !== change.progress;
}

/**
 * The store with what a digest says about known lines. Their versions stay: the rest of a line is still old, so an
 * answer of the version of the digest replaces all of it.
 */
export function patch(store: Store, changes: readonly Changed[]): Store {
  const fitting = changes.filter(({ id, version }) => (store.get(id)?.version ?? Number.POSITIVE_INFINITY) <= version);
  if (!fitting.length) return store;
  const next = new Map(store);
  for (const { version: _, ...change } of fitting) {
    const known = next.get(change.id);
    // In place: the order of the map says which line was read last.
    if (known) next.set(change.id, { ...known, ...change });
  }
  return next;
}

/** The current lines of a list that was answered as `page`. */
export function current(store: Store, page: readonly string[]): Line[] {
  return page.flatMap((id) => store.get(id) ?? []);
}
