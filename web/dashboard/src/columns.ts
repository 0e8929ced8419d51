// Which columns the list of tasks has, and in which order.

/** All of them beside the state, which is always the first. */
export const COLUMNS = ["kind", "task", "agent", "offers", "score", "try", "requested", "took", "requester", "cost", "priority", "epoch"] as const;
export type Column = (typeof COLUMNS)[number];

export const USUAL: readonly Column[] = ["kind", "task", "agent", "offers", "score", "try", "requested", "took", "requester"];

/** The columns in a stored text; the usual ones if it is not a list of columns. */
export function columnsOf(text: string | null): readonly Column[] {
  try {
    const read: unknown = JSON.parse(text ?? "null");
    if (!Array.isArray(read)) return USUAL;
    // Names of a version to come, and doubles, are left out.
    const known = [...new Set(read)].filter((name): name is Column => COLUMNS.some((column) => column === name));
    // It has the link to the task.
    return known.includes("task") ? known : ["task", ...known];
  } catch {
    return USUAL;
  }
}

/** The columns with one shown, at the end, or hidden. */
export function withColumn(chosen: readonly Column[], column: Column, isShown: boolean): readonly Column[] {
  const others = chosen.filter((one) => one !== column);
  return isShown ? [...others, column] : others;
}

/** The columns with one moved one place to the left. */
export function moved(chosen: readonly Column[], column: Column): readonly Column[] {
  const at = chosen.indexOf(column);
  if (at < 1) return chosen;
  const left = chosen[at - 1]!;
  return chosen.map((one, place) => (place === at - 1 ? column : place === at ? left : one));
}
