// The filter of the list of tasks: the query of the address, as the daemon takes it.

export const FIELDS = ["state", "kind", "agent", "requester", "since"] as const;
export type Filter = Partial<Record<(typeof FIELDS)[number], string>>;

export function fromQuery(query: URLSearchParams): Filter {
  return Object.fromEntries(FIELDS.flatMap((field) => (query.get(field) ? [[field, query.get(field) ?? ""]] : [])));
}

/** A time before now like `1h`, `30m` or `7d`, or an absolute time; `null` if it is neither. */
export function sinceTime(text: string, now: number): string | null {
  const relative = /^-?(\d+)\s*(s|m|h|d)$/.exec(text.trim());
  if (relative) {
    const unit = { s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 }[relative[2] as "s" | "m" | "h" | "d"];
    return new Date(now - Number(relative[1]) * unit).toISOString();
  }
  const time = Date.parse(text);
  return Number.isNaN(time) ? null : new Date(time).toISOString();
}

/** The daemon's parameters. */
export function toParams(filter: Filter, now: number): Record<string, string | null> {
  return {
    state: filter.state ?? null,
    kind: filter.kind ?? null,
    agent_id: filter.agent ?? null,
    requester: filter.requester ?? null,
    since: filter.since ? sinceTime(filter.since, now) : null,
  };
}

export function toggled(list: string | undefined, item: string): string {
  const items = new Set((list ?? "").split(",").filter(Boolean));
  if (!items.delete(item)) items.add(item);
  return [...items].join(",");
}
