// The filter of the list of tasks: the query of the address, as the daemon takes it.

export const FIELDS = ["state", "kind", "agent", "requester", "since", "until"] as const;
export type Filter = Partial<Record<(typeof FIELDS)[number], string>>;

export function fromQuery(query: URLSearchParams): Filter {
  return Object.fromEntries(FIELDS.flatMap((field) => (query.get(field) ? [[field, query.get(field) ?? ""]] : [])));
}

const RELATIVE = /^-?(\d+)\s*(s|m|h|d)$/;
const TIME_OF_DAY = /^\d{1,2}:\d{2}(:\d{2})?$/;
const ZONE = /(z|utc|gmt|[+-]\d{2}:?\d{2})$/i;

/** A time before now like `1h`, `30m` or `7d`, or an absolute time; `null` if it is neither. */
export function timeOf(text: string, now: number): string | null {
  const relative = RELATIVE.exec(text.trim());
  if (relative) {
    const unit = { s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 }[relative[2] as "s" | "m" | "h" | "d"];
    return new Date(now - Number(relative[1]) * unit).toISOString();
  }
  const time = Date.parse(text);
  return Number.isNaN(time) ? null : new Date(time).toISOString();
}

/**
 * What was typed, as the address has it: a link means the same time to a person in another zone. A time of day is that
 * of today, or of yesterday if it has not come yet. Relative times, and texts that are no time, stay.
 */
export function typedTime(text: string, now: number, isUtc: boolean): string {
  const typed = text.trim();
  if (RELATIVE.test(typed)) return typed;
  if (TIME_OF_DAY.test(typed)) {
    const [hour = 0, minute = 0, second = 0] = typed.split(":").map(Number);
    if (hour > 23 || minute > 59 || second > 59) return typed;
    const time = new Date(now);
    if (isUtc) time.setUTCHours(hour, minute, second, 0);
    else time.setHours(hour, minute, second, 0);
    if (time.getTime() > now) isUtc ? time.setUTCDate(time.getUTCDate() - 1) : time.setDate(time.getDate() - 1);
    return short(time);
  }
  const time = new Date(isUtc && !ZONE.test(typed) ? `${typed} UTC` : typed);
  return Number.isNaN(time.getTime()) ? typed : short(time);
}

const short = (time: Date): string => time.toISOString().replace(/(:00)?\.000Z$/, "Z");

/** The lowest id of a task that is requested at this time: ids begin with its milliseconds. */
export function idAt(time: string): string {
  const millis = Math.max(0, Date.parse(time)).toString(16).padStart(12, "0");
  return `${millis.slice(0, 8)}-${millis.slice(8)}-7000-8000-000000000000`;
}

/** The daemon's parameters. */
export function toParams(filter: Filter, now: number): Record<string, string | null> {
  const until = filter.until ? timeOf(filter.until, now) : null;
  return {
    state: filter.state ?? null,
    kind: filter.kind ?? null,
    agent_id: filter.agent ?? null,
    requester: filter.requester ?? null,
    since: filter.since ? timeOf(filter.since, now) : null,
    before: until ? idAt(until) : null,
  };
}

export function toggled(list: string | undefined, item: string): string {
  const items = new Set((list ?? "").split(",").filter(Boolean));
  if (!items.delete(item)) items.add(item);
  return [...items].join(",");
}
