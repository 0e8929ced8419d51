// The order of the tasks of a tree.
import type { Line } from "./types.ts";

/** Each task after its parent, in the order of their requests. A task whose parent is not in the list is a root. */
export function nested(lines: readonly Line[]): { line: Line; depth: number }[] {
  const known = new Set(lines.map(({ id }) => id));
  const parts = new Map<string | null, Line[]>();
  for (const line of [...lines].sort((a, b) => (a.id < b.id ? -1 : 1))) {
    const parent = line.parent_id !== null && known.has(line.parent_id) ? line.parent_id : null;
    parts.set(parent, [...(parts.get(parent) ?? []), line]);
  }
  const rows: { line: Line; depth: number }[] = [];
  const stack = (parts.get(null) ?? []).map((line) => ({ line, depth: 0 })).reverse();
  for (let next = stack.pop(); next; next = stack.pop()) {
    rows.push(next);
    const depth = next.depth + 1;
    stack.push(...(parts.get(next.line.id) ?? []).map((line) => ({ line, depth })).reverse());
  }
  // Rows that were edited by hand into a circle hang on no root.
  const drawn = new Set(rows.map(({ line }) => line.id));
  return [...rows, ...lines.filter(({ id }) => !drawn.has(id)).map((line) => ({ line, depth: 0 }))];
}
