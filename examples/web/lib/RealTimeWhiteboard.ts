// The guide's whiteboard: strokes have their own style and are rows; broadcasts show them while they are drawn.
// Strokes and clears share the order of the database, so all pages agree on it.
import type { SupabaseClient } from "@supabase/supabase-js";
import { Emitter } from "./emitter.ts";
import { randomId } from "./ids.ts";
import { MessageBatcher } from "./MessageBatcher.ts";
import { Outbox } from "./outbox.ts";
import { outcome, rows, type Outcome } from "./rest.ts";
import type { Change, Room, Row } from "./room.ts";
import type { RealtimeConnectionManager } from "./RealtimeConnectionManager.ts";
import { CHUNK_MAX, clamp, fromHex, LiveStroke, POINTS_MAX, pointsOf, styleOf, toHex, type Style } from "./strokes.ts";

export interface Stroke {
  id: string;
  author: string;
  style: Style;
  points: number[];
  /** The order in the database; undefined until the row arrives. */
  seq: number | undefined;
  deleted: boolean;
}

interface Piece {
  action: "start" | "draw" | "end";
  stroke: string;
  from: number;
  points: number[];
  style: Style;
  total?: number;
}

type Write = { kind: "stroke"; style: Style; points: number[] } | { kind: "deleted"; stroke: string; deleted: boolean } | { kind: "clear" };

export interface Pointer {
  user: string;
  x: number;
  y: number;
  at: number;
}

type Events = {
  /** Settled strokes changed; `whole`: more than one stroke on top. */
  settled: [whole: boolean];
  /** Strokes being drawn, or pointers, changed. */
  live: [];
  problem: [text: string];
};

const DRAW_EVERY_MS = 50;
const DRAW_POINTS = 16;
const CURSOR_EVERY_MS = 60;
const CURSOR_EXPIRES_MS = 5000;
/** Time after which a stroke without an end and without a row is dropped. */
const ABANDONED_MS = 10_000;
const NEED_AGAIN_MS = 500;
const LIVE_MAX = 200;
const POINTERS_MAX = 50;
const PAGE = 500;

export class RealTimeWhiteboard extends Emitter<Events> {
  readonly room: Room;
  readonly outbox: Outbox<Write>;
  readonly pointers = new Map<string, Pointer>();
  readonly live = new Map<string, LiveStroke>();
  /** Strokes that this tab is drawing or has not stored yet: other tabs may request their points. */
  readonly own = new Map<string, { style: Style; points: number[]; done: boolean }>();
  #strokes = new Map<string, Stroke>();
  #clearedAt = 0;
  /** The highest order of all strokes: a stroke above it can be drawn on top of the others. */
  #top = 0;
  readonly #pieces: MessageBatcher<Piece>;
  readonly #sweep: ReturnType<typeof setInterval>;
  readonly #askedAt = new Map<string, number>();
  #cursorAt = 0;

  constructor(
    readonly client: SupabaseClient,
    readonly rooms: RealtimeConnectionManager,
    readonly board: string,
    readonly me: string,
    readonly tab: string,
    presenceKey: string,
  ) {
    super();
    this.outbox = new Outbox((id, write) => this.#write(id, write));
    this.outbox.on("change", ({ id, item, state, message }) => {
      if (state !== "failed") return;
      this.emit("problem", `Not kept: ${message}`);
      if (item.kind === "stroke") this.own.delete(id);
      this.emit("live");
    });
    this.#pieces = new MessageBatcher({ send: (pieces) => this.#say(pieces), everyMs: DRAW_EVERY_MS, maxItems: 64, maxQueued: 2000 });
    const filter = `board=eq.${board}`;
    const options = { presenceKey, changes: [{ table: "strokes", filter }, { table: "clears", filter }] };
    this.room = rooms.getChannel(`whiteboard:${board}`, options, (room) => {
      room.onLoad(() => this.#load());
      room.on("change", (change) => this.#change(change));
      room.on("broadcast", ({ event, payload }) => this.#heard(event, (payload ?? {}) as Row));
      room.on("status", (status) => {
        if (status === "live") this.outbox.retryNow();
      });
    });
    this.#sweep = setInterval(() => this.#forget(), 1000);
  }

  /** Visible settled strokes, in the order of the database. */
  strokes(): Stroke[] {
    return [...this.#strokes.values()]
      .filter((stroke) => !stroke.deleted && (stroke.seq ?? Infinity) > this.#clearedAt)
      .sort((a, b) => (a.seq ?? 0) - (b.seq ?? 0));
  }

  begin(style: Style): string {
    const id = randomId();
    this.own.set(id, { style, points: [], done: false });
    this.#pieces.add({ action: "start", stroke: id, from: 0, points: [], style });
    return id;
  }

  /** Adds points (x, y, pressure). Returns false if the stroke is full and must be ended. */
  extend(id: string, points: readonly number[]): boolean {
    const own = this.own.get(id);
    if (!own || own.done) return false;
    const room = POINTS_MAX * 3 - own.points.length;
    const taken = points.slice(0, room).map(clamp);
    for (let at = 0; at < taken.length; at += DRAW_POINTS * 3) {
      const part = taken.slice(at, at + DRAW_POINTS * 3);
      this.#pieces.add({ action: "draw", stroke: id, from: own.points.length / 3, points: part, style: own.style });
      own.points.push(...part);
    }
    this.emit("live");
    return own.points.length < POINTS_MAX * 3;
  }

  /** Ends a stroke and stores it. */
  end(id: string): void {
    const own = this.own.get(id);
    if (!own || own.done) return;
    own.done = true;
    if (!own.points.length) return void this.own.delete(id);
    const total = own.points.length / 3;
    this.#pieces.add({ action: "end", stroke: id, from: total, points: [], style: own.style, total });
    if (this.outbox.add(id, { kind: "stroke", style: own.style, points: own.points })) return;
    this.own.delete(id);
    this.emit("problem", "Too many strokes wait to be stored.");
  }

  /** Hides this person's newest stroke. Returns false if there is none. */
  undo(): boolean {
    const last = this.strokes().findLast((stroke) => stroke.author === this.me && stroke.seq !== undefined);
    return last !== undefined && this.setDeleted(last, true);
  }

  /** Shows this person's most recently hidden stroke. */
  redo(): boolean {
    const undone = [...this.#strokes.values()].filter((stroke) => stroke.author === this.me && stroke.deleted && (stroke.seq ?? 0) > this.#clearedAt);
    const first = undone.sort((a, b) => (a.seq ?? 0) - (b.seq ?? 0))[0];
    return first !== undefined && this.setDeleted(first, false);
  }

  /** Hides or shows a stroke of this person; the database refuses strokes of others. */
  setDeleted(stroke: Stroke, deleted: boolean): boolean {
    stroke.deleted = deleted;
    this.emit("settled", true);
    return this.outbox.add(randomId(), { kind: "deleted", stroke: stroke.id, deleted });
  }

  /** Clears the board for all people. Strokes with a later order in the database stay. */
  clearBoard(): void {
    this.outbox.add(randomId(), { kind: "clear" });
  }

  point(x: number, y: number): void {
    if (Date.now() - this.#cursorAt < CURSOR_EVERY_MS) return;
    this.#cursorAt = Date.now();
    void this.room.send("cursor", { tab: this.tab, user: this.me, x: Math.round(x), y: Math.round(y) });
  }

  close(): void {
    clearInterval(this.#sweep);
    void this.#pieces.close();
    this.outbox.close();
    this.rooms.releaseChannel(`whiteboard:${this.board}`);
    this.clear();
  }

  async #write(id: string, write: Write): Promise<Outcome<unknown>> {
    if (write.kind === "clear") return outcome(await this.client.from("clears").insert({ board: this.board }));
    if (write.kind === "deleted")
      return outcome(await this.client.from("strokes").update({ deleted_at: write.deleted ? new Date().toISOString() : null }).eq("id", write.stroke));
    const row = { id, board: this.board, style: write.style, points: toHex(write.points) };
    const answer = outcome(await this.client.from("strokes").insert(row).select("id,seq").single<{ id: string; seq: number }>());
    // The row may arrive as a change before or after this answer; both store the same stroke.
    if (answer.kind === "done") this.#put({ id, author: this.me, style: write.style, points: write.points, seq: answer.data.seq, deleted: false });
    return answer;
  }

  // Consecutive pieces of a stroke are one message.
  async #say(pieces: Piece[]): Promise<boolean> {
    const joined: Piece[] = [];
    for (const piece of pieces) {
      const last = joined.at(-1);
      const follows = last && last.stroke === piece.stroke && last.from + last.points.length / 3 === piece.from && last.points.length < CHUNK_MAX * 3 - DRAW_POINTS * 3;
      if (follows && last.action !== "end") {
        last.points = [...last.points, ...piece.points];
        if (piece.action === "end") Object.assign(last, { action: "end", total: piece.total });
      } else joined.push({ ...piece });
    }
    for (const { action, stroke, from, points, style, total } of joined)
      if (!(await this.room.send("draw", { action, stroke, from, deltas: points, style, total, author: this.me }))) {
        // Without a connection, other people see only the row.
        return true;
      }
    return true;
  }

  async #load(): Promise<void> {
    const clear = rows(await this.client.from("clears").select("seq").eq("board", this.board).order("seq", { ascending: false }).limit(1).returns<{ seq: number }[]>());
    this.#clearedAt = Math.max(this.#clearedAt, clear[0]?.seq ?? 0);
    const found = new Map<string, Stroke>();
    for (let after = this.#clearedAt; ; ) {
      const page = rows(await this.client.from("strokes").select("*").eq("board", this.board).gt("seq", after).order("seq").limit(PAGE).returns<Row[]>());
      for (const row of page) {
        const stroke = strokeOf(row);
        if (stroke) found.set(stroke.id, stroke);
      }
      if (page.length < PAGE) break;
      after = Number(page.at(-1)?.seq);
    }
    this.#strokes = found;
    this.#top = Math.max(0, ...[...found.values()].map((stroke) => stroke.seq ?? 0));
    for (const id of found.keys()) this.#settledNow(id);
    for (const stroke of found.values()) this.#keepIntent(stroke);
    this.emit("settled", true);
    this.emit("live");
  }

  #change({ table, type, new: row }: Change): void {
    if (table === "clears") {
      if (Number(row.seq) <= this.#clearedAt) return;
      this.#clearedAt = Number(row.seq);
      return this.emit("settled", true);
    }
    // The own insert was answered before, and the stroke may be hidden since.
    if (type === "INSERT" && this.#strokes.has(String(row.id))) return;
    const stroke = strokeOf(row);
    if (stroke) return this.#put(stroke);
    // The points are too large for a message, so read the row.
    if (typeof row.id === "string") this.room.reload();
  }

  // An own change without an answer is newer than the row.
  #keepIntent(stroke: Stroke): void {
    for (const { item } of this.outbox.unsettled()) if (item.kind === "deleted" && item.stroke === stroke.id) stroke.deleted = item.deleted;
  }

  #put(stroke: Stroke): void {
    this.#keepIntent(stroke);
    const known = this.#strokes.get(stroke.id);
    const onTop = !known && (stroke.seq ?? 0) > this.#top && !stroke.deleted;
    this.#top = Math.max(this.#top, stroke.seq ?? 0);
    const same = known && known.deleted === stroke.deleted && known.seq === stroke.seq;
    this.#strokes.set(stroke.id, stroke);
    this.#settledNow(stroke.id);
    if (!same) this.emit("settled", !onTop);
    this.emit("live");
  }

  #settledNow(id: string): void {
    this.own.delete(id);
    this.live.delete(id);
    if (this.outbox.get(id)) this.outbox.drop(id);
  }

  #heard(event: string, message: Row): void {
    if (event === "cursor") return this.#cursor(message);
    if (event === "need") return this.#needed(message);
    if (event !== "draw") return;
    const { stroke: id, from, author, total, action } = message;
    const points = pointsOf(message.deltas);
    if (typeof id !== "string" || id.length > 40 || typeof from !== "number" || !(from >= 0) || typeof author !== "string" || !points) return;
    if (this.#strokes.has(id) || this.own.has(id)) return;
    const live = this.live.get(id) ?? (this.live.size < LIVE_MAX ? new LiveStroke(id, author.slice(0, 60), styleOf(message.style), Date.now()) : undefined);
    if (!live) return;
    this.live.set(id, live);
    live.heardAt = Date.now();
    if (action === "end" && typeof total === "number" && total >= 0) live.total = total;
    const lacking = live.add(from, points);
    if (lacking !== undefined) this.#need(live, lacking);
    this.emit("live");
  }

  #need(live: LiveStroke, from: number): void {
    const asked = this.#askedAt.get(live.id) ?? 0;
    if (Date.now() - asked < NEED_AGAIN_MS) return;
    this.#askedAt.set(live.id, Date.now());
    void this.room.send("need", { stroke: live.id, from });
  }

  // Another tab lacks points of a stroke of this tab.
  #needed({ stroke: id, from }: Row): void {
    const own = typeof id === "string" ? this.own.get(id) : undefined;
    if (!own || typeof id !== "string" || typeof from !== "number" || !(from >= 0)) return;
    for (let at = Math.floor(from); at < own.points.length / 3; at += CHUNK_MAX - DRAW_POINTS) {
      const points = own.points.slice(at * 3, (at + CHUNK_MAX - DRAW_POINTS) * 3);
      const total = own.done ? own.points.length / 3 : undefined;
      void this.room.send("draw", { action: own.done ? "end" : "draw", stroke: id, from: at, deltas: points, style: own.style, total, author: this.me });
    }
  }

  #cursor({ tab, user, x, y }: Row): void {
    if (typeof tab !== "string" || typeof user !== "string" || typeof x !== "number" || typeof y !== "number" || tab === this.tab) return;
    if (!this.pointers.has(tab) && this.pointers.size >= POINTERS_MAX) return;
    this.pointers.set(tab, { user: user.slice(0, 60), x, y, at: Date.now() });
    this.emit("live");
  }

  #forget(): void {
    const now = Date.now();
    let changed = false;
    for (const [tab, pointer] of this.pointers) if (now - pointer.at > CURSOR_EXPIRES_MS) changed = this.pointers.delete(tab) || changed;
    for (const [id, live] of this.live) {
      if (now - live.heardAt > ABANDONED_MS) changed = this.live.delete(id) || changed;
      else if (live.lacking() !== undefined) this.#need(live, live.points.length / 3);
    }
    for (const [id, at] of this.#askedAt) if (now - at > ABANDONED_MS) this.#askedAt.delete(id);
    if (changed) this.emit("live");
  }
}

function strokeOf(row: Row): Stroke | undefined {
  const points = fromHex(row.points);
  if (!points || typeof row.id !== "string") return undefined;
  return { id: row.id, author: String(row.author), style: styleOf(row.style), points, seq: Number(row.seq), deleted: row.deleted_at !== null && row.deleted_at !== undefined };
}
