// The newest points of a widget, ordered by event time regardless of arrival. Pure: no clock, no DOM.

/** An event as a widget uses it. */
export interface Point {
  /** Id of the row, or a generated text for a broadcast. */
  id: string;
  /** Milliseconds since 1970, with a fraction. */
  at: number;
  value: number;
  name: string;
  dims: Record<string, unknown>;
}

export type Put = "added" | "replaced" | "duplicate" | "late";

/** Ids that are remembered beyond the ring: a point that is replayed after a resume may have left the ring. */
const KNOWN_MAX = 200;

export class EventRing {
  readonly #points: Point[] = [];
  readonly #known = new Map<string, true>();
  /** Number of points that were older than a full ring at arrival; they are not drawn. */
  late = 0;
  /** True if the ring lost points and the table may have older ones: it should be read again. */
  short = false;

  constructor(readonly max: number) {}

  get size(): number {
    return this.#points.length;
  }

  /** Newest last. */
  get points(): readonly Point[] {
    return this.#points;
  }

  /** Times in seconds and values, for a chart. A break between points further apart than `gapMs` is a null. */
  pairs(gapMs = Infinity): [Float64Array, (number | null)[]] {
    const xs: number[] = [];
    const ys: (number | null)[] = [];
    let before: Point | undefined;
    for (const point of this.#points) {
      if (before && point.at - before.at > gapMs) {
        xs.push((before.at + point.at) / 2000);
        ys.push(null);
      }
      xs.push(point.at / 1000);
      ys.push(point.value);
      before = point;
    }
    return [Float64Array.from(xs), ys];
  }

  /** Adds a new row. A known id changes nothing. */
  put(point: Point): Put {
    if (this.#known.has(point.id)) return "duplicate";
    this.#remember(point.id);
    return this.#insert(point);
  }

  /** Applies a changed row: its time may differ. */
  replace(point: Point): Put {
    const had = this.#take(point.id);
    this.#remember(point.id);
    const full = had && this.size + 1 >= this.max;
    const oldest = this.#points[0];
    // Its new time may be older than rows that the ring does not have.
    if (full && oldest && point.at < oldest.at) this.short = true;
    const put = this.#insert(point);
    return had && put === "added" ? "replaced" : put;
  }

  /** Removes a row. A full ring that loses one has room for an older row, which only the table knows. */
  remove(id: string): boolean {
    const full = this.size >= this.max;
    const had = this.#take(id) !== undefined;
    if (had && full) this.short = true;
    this.#remember(id);
    return had;
  }

  /** Replaces all points with rows that were read, in any order. */
  reset(points: Iterable<Point>): void {
    this.#points.length = 0;
    this.#known.clear();
    this.short = false;
    for (const point of points) this.put(point);
  }

  #insert(point: Point): Put {
    let at = this.#points.length;
    while (at > 0 && after(this.#points[at - 1]!, point)) at -= 1;
    if (at === 0 && this.size >= this.max) {
      this.late += 1;
      return "late";
    }
    this.#points.splice(at, 0, point);
    if (this.size > this.max) this.#points.shift();
    return "added";
  }

  #take(id: string): Point | undefined {
    const at = this.#points.findIndex((point) => point.id === id);
    return at < 0 ? undefined : this.#points.splice(at, 1)[0];
  }

  #remember(id: string): void {
    this.#known.delete(id);
    this.#known.set(id, true);
    const most = Math.max(KNOWN_MAX, this.max * 2);
    if (this.#known.size > most) this.#known.delete(this.#known.keys().next().value as string);
  }
}

// With equal times, the higher id is newer, as in `order by at desc, id desc`.
function after(a: Point, b: Point): boolean {
  if (a.at !== b.at) return a.at > b.at;
  return a.id.length !== b.id.length ? a.id.length > b.id.length : a.id > b.id;
}

/** Aggregates many points a second into time steps with mean, minimum and maximum. */
export class Buckets {
  readonly #steps = new Map<number, { sum: number; count: number; min: number; max: number }>();

  constructor(
    readonly stepMs: number,
    readonly max: number,
  ) {}

  add({ at, value }: Point): void {
    const step = Math.floor(at / this.stepMs);
    const known = this.#steps.get(step) ?? { sum: 0, count: 0, min: Infinity, max: -Infinity };
    known.sum += value;
    known.count += 1;
    known.min = Math.min(known.min, value);
    known.max = Math.max(known.max, value);
    this.#steps.set(step, known);
    if (this.#steps.size > this.max) this.#steps.delete(Math.min(...this.#steps.keys()));
  }

  /** Times in seconds, means, minima, maxima, in the order of time. */
  series(): [Float64Array, number[], number[], number[]] {
    const steps = [...this.#steps].sort(([a], [b]) => a - b);
    return [
      Float64Array.from(steps, ([step]) => ((step + 0.5) * this.stepMs) / 1000),
      steps.map(([, { sum, count }]) => sum / count),
      steps.map(([, { min }]) => min),
      steps.map(([, { max }]) => max),
    ];
  }
}

/**
 * Returns milliseconds with a fraction: Postgres orders by microseconds, which `Date.parse` drops, and two rows of one
 * millisecond could swap.
 */
function timeOf(text: string): number {
  const micros = /\.\d{3}(\d{1,3})/.exec(text)?.[1] ?? "";
  return Date.parse(text) + Number(micros.padEnd(3, "0")) / 1000;
}

/** Returns a row of analytics_events as a point, or the reason why it is invalid. */
export function pointOf(row: Record<string, unknown>): Point | string {
  const at = timeOf(String(row.at));
  if (!Number.isFinite(at)) return "a time that is no time";
  // JSON has no NaN: a NaN of the database arrives as null.
  if (typeof row.value !== "number" || !Number.isFinite(row.value)) return "a value that is no number";
  const dims = row.dims && typeof row.dims === "object" && !Array.isArray(row.dims) ? (row.dims as Record<string, unknown>) : {};
  return { id: String(row.id), at, value: row.value, name: String(row.name ?? ""), dims };
}
