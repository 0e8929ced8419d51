// The guide's live dashboard: collects bindings, shares equal ones, then subscribes; reads the rows again after every
// disconnect; applies many events together and draws at most ten times a second.
import type { SupabaseClient } from "@supabase/supabase-js";
import { Emitter } from "./emitter.ts";
import { EventRing, pointOf, type Point } from "./EventRing.ts";
import type { RealtimeConnectionManager } from "./RealtimeConnectionManager.ts";
import { rows } from "./rest.ts";
import type { Change, Room, Row } from "./room.ts";

export type WidgetKind = "line" | "counter" | "gauge" | "bars" | "table";

export interface WidgetSpec {
  id: string;
  kind: WidgetKind;
  title: string;
  source: string;
  settings: Record<string, unknown>;
  max_data_points: number;
  place: number;
}

/** State of a widget; the page draws it. */
export interface WidgetState {
  spec: WidgetSpec;
  ring: EventRing;
  /** Events of the last minute, by second. */
  perSecond: Map<number, number>;
  bad: number;
  badReason: string;
}

interface Gap {
  from: number;
  to: number | undefined;
}

type Events = { change: []; widgets: []; problem: [text: string]; point: [widget: string, point: Point] };

const MINUTE_S = 60;
/** Minimum interval between reads of rings that lost rows. */
const REFILL_MS = 1000;
const GAPS_MAX = 20;

export class LiveDashboard extends Emitter<Events> {
  readonly widgets = new Map<string, WidgetState>();
  readonly gaps: Gap[] = [];
  room!: Room;
  /** The sources of the room's own bindings. */
  #sources = new Set<string>();
  /** The rooms of sources that came later. */
  readonly #late = new Map<string, Room>();
  #refill: ReturnType<typeof setTimeout> | undefined;
  #broadcasts = 0;

  constructor(
    readonly client: SupabaseClient,
    readonly rooms: RealtimeConnectionManager,
    readonly org: string,
  ) {
    super();
  }

  /** Reads the widgets, collects their bindings, and subscribes once. */
  async open(): Promise<Room> {
    const found = await this.#readWidgets().catch((error: Error) => {
      this.emit("problem", `The widgets cannot be read: ${error.message}`);
      return [];
    });
    for (const spec of found) this.#add(spec);
    this.#sources = new Set(found.map((spec) => spec.source));
    const changes = [...[...this.#sources].map((source) => ({ table: "analytics_events", filter: `source=eq.${source}` })), { table: "widgets" }];
    this.room = this.rooms.getChannel(`dashboard:${this.org}`, { changes }, (room) => {
      room.onLoad(() => this.#load());
      room.on("change", (change) => this.#change(change));
      room.on("broadcast", ({ event, payload }) => event === "metric_update" && this.#metric(payload));
      room.on("status", (status) => this.#status(status));
    });
    return this.room;
  }

  /** Adds a widget to the table; every page, including this one, receives it as a row change. */
  async addWidget(spec: Pick<WidgetSpec, "id" | "kind" | "title" | "source" | "max_data_points">): Promise<string | undefined> {
    const { error } = await this.client.from("widgets").insert({ ...spec, place: this.widgets.size + 1 });
    return error?.message;
  }

  async removeWidget(id: string): Promise<string | undefined> {
    const { error } = await this.client.from("widgets").delete().eq("id", id);
    return error?.message;
  }

  /** Events of a widget in the last minute. */
  lastMinute(state: WidgetState, now: number): number {
    const from = Math.floor(now / 1000) - MINUTE_S;
    let sum = 0;
    for (const [second, count] of state.perSecond) if (second > from) sum += count;
    return sum;
  }

  close(): void {
    clearTimeout(this.#refill);
    this.rooms.releaseChannel(`dashboard:${this.org}`);
    for (const room of this.#late.values()) this.rooms.releaseChannel(room.topic);
    this.clear();
  }

  #add(spec: WidgetSpec): WidgetState {
    const state: WidgetState = { spec, ring: new EventRing(spec.max_data_points), perSecond: new Map(), bad: 0, badReason: "" };
    this.widgets.set(spec.id, state);
    return state;
  }

  async #readWidgets(): Promise<WidgetSpec[]> {
    return rows(await this.client.from("widgets").select("*").order("place").order("id").returns<WidgetSpec[]>());
  }

  async #load(): Promise<void> {
    const found = await this.#readWidgets();
    for (const spec of found) if (!this.widgets.has(spec.id)) this.#widgetAdded(spec);
    const here = new Set(found.map((spec) => spec.id));
    for (const id of this.widgets.keys()) if (!here.has(id)) this.widgets.delete(id);
    // A source with a room of its own is read there: only that room buffers the source's changes during the read, so that
    // rows from before a change do not take its place.
    for (const state of this.widgets.values()) if (!this.#late.has(state.spec.source)) await this.#fill(state);
    this.emit("widgets");
    this.emit("change");
  }

  async #fill(state: WidgetState): Promise<void> {
    const { source, max_data_points } = state.spec;
    const found = rows(
      await this.client.from("analytics_events").select("*").eq("source", source).order("at", { ascending: false }).order("id", { ascending: false }).limit(max_data_points).returns<Row[]>(),
    );
    state.ring.reset(found.map(pointOf).filter((point) => typeof point !== "string"));
    // The counts of the last minute start with the rows that were read, and continue with row changes.
    if (!state.perSecond.size) for (const point of state.ring.points) count(state, point);
  }

  #change({ table, type, new: row, old }: Change): void {
    if (table === "widgets") return this.#widgetChanged(type, type === "DELETE" ? old : row);
    for (const state of this.widgets.values()) {
      if (type === "DELETE") state.ring.remove(String(old.id));
      else if (row.source === state.spec.source) this.#event(state, type, row);
      if (state.ring.short) this.#refillSoon();
    }
    this.emit("change");
  }

  #event(state: WidgetState, type: "INSERT" | "UPDATE", row: Row): void {
    const point = pointOf(row);
    if (typeof point === "string") {
      state.bad += 1;
      state.badReason = point;
      if (type === "UPDATE") state.ring.remove(String(row.id));
      return;
    }
    if (type === "UPDATE") return void state.ring.replace(point);
    if (state.ring.put(point) === "duplicate") return;
    count(state, point);
    this.emit("point", state.spec.id, point);
  }

  /** Adds a broadcast value without a row; it stays in the ring until newer points evict it. */
  #metric(payload: unknown): void {
    const { widget_id, value, timestamp } = (payload ?? {}) as Record<string, unknown>;
    const state = this.widgets.get(String(widget_id));
    if (!state) return;
    const at = typeof timestamp === "number" ? new Date(timestamp).toISOString() : timestamp;
    this.#broadcasts += 1;
    const point = pointOf({ id: `said ${this.#broadcasts}`, at, value, name: "metric_update" });
    if (typeof point === "string") {
      state.bad += 1;
      state.badReason = point;
    } else {
      state.ring.put(point);
      this.emit("point", state.spec.id, point);
    }
    this.emit("change");
  }

  #widgetChanged(type: Change["type"], row: Row): void {
    const id = String(row.id);
    if (type === "DELETE") this.widgets.delete(id);
    else if (!this.widgets.has(id)) {
      this.#widgetAdded(row as unknown as WidgetSpec);
      this.room.reload();
    }
    else Object.assign(this.widgets.get(id)!.spec, row);
    this.emit("widgets");
    this.emit("change");
  }

  // Bindings cannot be added to a subscribed channel: a new source gets its own channel.
  #widgetAdded(spec: WidgetSpec): WidgetState {
    const state = this.#add(spec);
    const late = this.#late.get(spec.source);
    if (late) late.reload();
    else if (!this.#sources.has(spec.source)) {
      // Public: row security protects the rows, and this channel has no broadcasts.
      const options = { private: false, changes: [{ table: "analytics_events", filter: `source=eq.${spec.source}` }] };
      const room = this.rooms.getChannel(`dashboard-rows:${this.org}:${spec.source}`, options, (made) => {
        made.onLoad(async () => {
          for (const one of this.widgets.values()) if (one.spec.source === spec.source) await this.#fill(one);
          this.emit("change");
        });
        made.on("change", (change) => this.#change(change));
      });
      this.#late.set(spec.source, room);
    }
    return state;
  }

  // Through the rooms, which buffer changes during a read: a row that arrives meanwhile would be lost otherwise.
  #refillSoon(): void {
    this.#refill ??= setTimeout(() => {
      this.#refill = undefined;
      for (const room of [this.room, ...this.#late.values()]) room.reload();
    }, REFILL_MS);
  }

  #status(status: string): void {
    const open = this.gaps.at(-1);
    if (status === "down" && (!open || open.to !== undefined)) this.gaps.push({ from: Date.now(), to: undefined });
    if (status === "live" && open && open.to === undefined) open.to = Date.now();
    if (this.gaps.length > GAPS_MAX) this.gaps.shift();
    this.emit("change");
  }
}

function count(state: WidgetState, point: Point): void {
  const second = Math.floor(point.at / 1000);
  state.perSecond.set(second, (state.perSecond.get(second) ?? 0) + 1);
  if (state.perSecond.size > MINUTE_S * 2) state.perSecond.delete(Math.min(...state.perSecond.keys()));
}
