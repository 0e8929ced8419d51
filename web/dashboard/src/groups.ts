// The list of tasks in groups: by kind, agent, requester, state, or tree.
import type { Line } from "./types.ts";

export const GROUPS = ["kind", "agent", "requester", "state", "tree"] as const;
export type GroupBy = (typeof GROUPS)[number];

export interface Group {
  /** What its tasks have in common; empty for tasks without an agent. */
  name: string;
  lines: Line[];
}

/** The grouping that the address names; `null` for none. */
export function groupByOf(text: string | null): GroupBy | null {
  return GROUPS.find((known) => known === text) ?? null;
}

export function groupOf(line: Line, by: GroupBy): string {
  switch (by) {
    case "kind": return line.kind;
    case "agent": return line.agent_id ?? "";
    case "requester": return line.requester;
    case "state": return line.state;
    case "tree": return line.root_id;
  }
}

/** The lines in groups, each where its first line is, with the lines in their order. */
export function inGroups(lines: readonly Line[], nameOf: (line: Line) => string): Group[] {
  const groups = new Map<string, Line[]>();
  for (const line of lines) {
    const name = nameOf(line);
    const known = groups.get(name);
    if (known) known.push(line);
    else groups.set(name, [line]);
  }
  return [...groups].map(([name, lines]) => ({ name, lines }));
}
