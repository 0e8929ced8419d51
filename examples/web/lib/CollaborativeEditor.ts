// The guide's collaborative editor, with a CRDT (Yjs) instead of the guide's undefined OperationalTransform, which needs
// a server that orders operations. This is the Yjs provider: broadcasts for latency, an append-only table for durability.
import type { SupabaseClient } from "@supabase/supabase-js";
import { applyAwarenessUpdate, Awareness, encodeAwarenessUpdate, removeAwarenessStates } from "y-protocols/awareness";
import * as Y from "yjs";
import { bytesFromHex, bytesToHex } from "./bytea.ts";
import { Emitter } from "./emitter.ts";
import { MissingUpdates } from "./missing.ts";
import { outcome, rows } from "./rest.ts";
import type { Room, Row } from "./room.ts";
import type { RealtimeConnectionManager } from "./RealtimeConnectionManager.ts";
import { Keep } from "./keep.ts";

type Events = { change: []; problem: [text: string] };

/** Interval at which own updates are merged and stored. */
const STORE_EVERY_MS = 200;
const AWARENESS_EVERY_MS = 80;
/** A larger update is stored first, and a `stored` broadcast asks others to read it: a broadcast has at most 3,000,000 bytes. */
const BROADCAST_MAX = 1_000_000;
/** Maximum bytes of one row; the table refuses a larger one. */
const UPDATE_MAX = 4_000_000;
const PAGE = 500;
/** Rows that are read again: identity numbers do not commit in order. */
const OVERLAP = 200;
const COMPACT_AT = 200;
/** A row with a lower number than a row younger than this may not be committed yet. */
const COMPACT_AGE_MS = 30_000;
const RETRY_MS = 1000;

const REMOTE = Symbol("remote");

export class CollaborativeEditor extends Emitter<Events> {
  readonly doc = new Y.Doc();
  readonly text = this.doc.getText("text");
  readonly awareness = new Awareness(this.doc);
  readonly room: Room;
  readonly #keep: Keep;
  readonly #asks: MissingUpdates;
  #pending: Uint8Array[] = [];
  #storing = false;
  #storeTimer: ReturnType<typeof setTimeout> | undefined;
  #awarenessTimer: ReturnType<typeof setTimeout> | undefined;
  #lastSeq = 0;
  #snapshotSeq = 0;
  #closed = false;
  #refused = false;
  #kept = true;

  constructor(
    readonly client: SupabaseClient,
    readonly rooms: RealtimeConnectionManager,
    readonly id: string,
    readonly me: { id: string; name: string; color: string; colorLight: string },
    readonly tab: string,
    readonly mayWrite: boolean,
    presenceKey: string,
  ) {
    super();
    this.#keep = new Keep(`doc:${id}:${me.id}:`, tab);
    this.room = rooms.getChannel(`doc:${id}`, { presenceKey }, (room) => {
      room.onLoad(() => this.#load());
      room.on("broadcast", ({ event, payload }) => this.#heard(event, payload));
      room.on("status", (status) => {
        if (status === "live") this.#live();
      });
    });
    this.#asks = new MissingUpdates(this.doc, (event, bytes) => this.#say(event, bytes));
    this.doc.on("update", (update: Uint8Array, origin: unknown) => {
      if (origin !== REMOTE) this.#changed(update);
      this.emit("change");
    });
    if (mayWrite) this.awareness.setLocalStateField("user", { name: me.name, color: me.color, colorLight: me.colorLight, id: me.id });
    else this.awareness.setLocalState(null);
    this.awareness.on("update", (changes: { added: number[]; updated: number[]; removed: number[] }, origin: unknown) => {
      if (origin === REMOTE) return this.emit("change");
      const own = [...changes.added, ...changes.updated, ...changes.removed].includes(this.doc.clientID);
      if (own) this.#sayWhere();
    });
    for (const left of this.#keep.leftovers()) this.#adopt(left);
    this.#save();
  }

  /** Number of own updates that are not stored in the table yet. */
  get unsaved(): number {
    return this.#pending.length;
  }

  /** Whether closing the tab loses changes: they are neither in the table nor in this browser's storage. */
  get atRisk(): boolean {
    return this.#pending.length > 0 && (this.#refused || !this.#kept);
  }

  /** Removes the cursor of a tab that left. */
  left(clientId: number): void {
    if (clientId !== this.doc.clientID) removeAwarenessStates(this.awareness, [clientId], REMOTE);
  }

  /** Sends our cursor to a new member. */
  came(): void {
    this.#sayWhere();
  }

  close(): void {
    this.#closed = true;
    this.#asks.close();
    clearTimeout(this.#storeTimer);
    clearTimeout(this.#awarenessTimer);
    removeAwarenessStates(this.awareness, [this.doc.clientID], "closed");
    this.rooms.releaseChannel(`doc:${this.id}`);
    this.clear();
  }

  // Takes over an update that another tab had not stored when it ended; applying it twice is harmless.
  #adopt(update: Uint8Array): void {
    if (this.#apply(update)) this.#pending.push(update);
  }

  #save(): void {
    this.#kept = this.#keep.save(this.#pending);
  }

  #changed(update: Uint8Array): void {
    if (!this.mayWrite) return;
    this.#pending.push(update);
    if (update.byteLength <= BROADCAST_MAX) void this.#say("operation", update);
    this.#storeTimer ??= setTimeout(() => void this.#store(), STORE_EVERY_MS);
    this.#save();
  }

  async #say(event: string, bytes: Uint8Array): Promise<boolean> {
    // supabase-js sends an ArrayBuffer as bytes, and any view of one as JSON.
    return this.room.send(event, bytes.slice().buffer);
  }

  // One request at a time; updates made meanwhile are part of the next one.
  async #store(): Promise<void> {
    clearTimeout(this.#storeTimer);
    this.#storeTimer = undefined;
    if (this.#storing || this.#closed || !this.#pending.length || this.#refused) return;
    this.#storing = true;
    const batch = this.#pending.slice();
    const merged = Y.mergeUpdates(batch);
    const result =
      merged.byteLength > UPDATE_MAX
        ? { kind: "refused" as const, message: `one change has at most ${UPDATE_MAX} bytes, this one has ${merged.byteLength}` }
        : await this.client.from("document_updates").insert({ doc: this.id, update: bytesToHex(merged) }).then(outcome, (error: Error) => ({ kind: "retry" as const, message: error.message }));
    this.#storing = false;
    if (result.kind === "done") {
      this.#pending = this.#pending.slice(batch.length);
      this.#save();
      if (merged.byteLength > BROADCAST_MAX) void this.room.send("stored", {});
    } else if (result.kind === "refused") {
      this.#refused = true;
      this.emit("problem", `Your changes are not kept: ${result.message}`);
    } else {
      // Replaces many updates with one, because each key press merges all waiting updates.
      this.#pending = [merged, ...this.#pending.slice(batch.length)];
      if (!this.#kept) this.emit("problem", "Your changes are not saved, and this browser's storage is full or blocked. Keep this tab open until it says “saved”.");
    }
    this.emit("change");
    if (this.#pending.length && !this.#refused) this.#storeTimer ??= setTimeout(() => void this.#store(), result.kind === "retry" ? RETRY_MS : STORE_EVERY_MS);
  }

  async #load(): Promise<void> {
    for (;;) {
      const before = await this.#document();
      if (before.snapshot && before.seq > this.#snapshotSeq) {
        Y.applyUpdate(this.doc, before.snapshot, REMOTE);
        this.#lastSeq = Math.max(this.#lastSeq, before.seq);
      }
      this.#snapshotSeq = before.seq;
      const found = await this.#updates(Math.max(before.seq, this.#lastSeq - OVERLAP));
      // Another tab compacted during the read: the removed rows are in the new snapshot.
      if ((await this.#document(false)).seq !== before.seq) continue;
      if (found.length >= COMPACT_AT && this.mayWrite) void this.#compact(found);
      return;
    }
  }

  async #document(whole = true): Promise<{ seq: number; snapshot: Uint8Array | undefined }> {
    const found = rows(await this.client.from("documents").select(whole ? "*" : "snapshot_seq").eq("id", this.id).limit(1).returns<Row[]>())[0];
    if (!found) throw new Error("there is no such document, or you are not a member");
    return { seq: Number(found.snapshot_seq), snapshot: bytesFromHex(found.snapshot) };
  }

  async #updates(after: number): Promise<Row[]> {
    const found: Row[] = [];
    for (let from = after; ; ) {
      const page = rows(await this.client.from("document_updates").select("*").eq("doc", this.id).gt("seq", from).order("seq").limit(PAGE).returns<Row[]>());
      // One transaction for the page, so the text is drawn once.
      this.doc.transact(() => page.forEach((row) => this.#apply(bytesFromHex(row.update))), REMOTE);
      found.push(...page);
      const last = Number(page.at(-1)?.seq ?? from);
      this.#lastSeq = Math.max(this.#lastSeq, last);
      if (page.length < PAGE) return found;
      from = last;
    }
  }

  // Ignores a row or message that is not an update.
  #apply(update: Uint8Array | undefined): boolean {
    if (!update) return false;
    try {
      Y.applyUpdate(this.doc, update, REMOTE);
      return true;
    } catch (error) {
      console.warn(`doc ${this.id}: an update cannot be read: ${(error as Error).message}`);
      return false;
    }
  }

  /**
   * Merges old updates into the snapshot. The guarded update lets one of several concurrent tabs win. Only rows that
   * are older than the newest by a margin are merged, because a row with a lower number may not be committed yet.
   */
  async #compact(found: Row[]): Promise<void> {
    const newest = Date.parse(String(found.at(-1)?.at));
    const old = found.filter((row) => Date.parse(String(row.at)) < newest - COMPACT_AGE_MS);
    const upTo = Number(old.at(-1)?.seq ?? 0);
    if (old.length < COMPACT_AT || upTo <= this.#snapshotSeq) return;
    const before = this.#snapshotSeq;
    const snapshot = bytesToHex(Y.encodeStateAsUpdate(this.doc));
    const won = outcome(await this.client.from("documents").update({ snapshot, snapshot_seq: upTo }).eq("id", this.id).eq("snapshot_seq", before).select("id"));
    if (won.kind !== "done" || !(won.data as unknown[]).length) return;
    this.#snapshotSeq = upTo;
    // After a failure, the next compaction removes the rows.
    await this.client.from("document_updates").delete().eq("doc", this.id).lte("seq", upTo);
  }

  #live(): void {
    if (!this.mayWrite) return void this.#asks.ask();
    if (this.#pending.length) void this.#store();
    this.#asks.ask();
    this.#sayWhere();
  }

  #heard(event: string, payload: unknown): void {
    if (event === "stored") return this.room.reload();
    if (!(payload instanceof ArrayBuffer)) return;
    const bytes = new Uint8Array(payload);
    if (event === "operation") {
      if (this.#apply(bytes)) this.#asks.askIfLacking();
    } else if (event === "sync1") this.#asks.asked(bytes);
    else if (event === "sync2") {
      this.#asks.answered(bytes);
      this.#apply(bytes);
    } else if (event === "cursor") this.#cursor(bytes);
  }

  #cursor(bytes: Uint8Array): void {
    try {
      applyAwarenessUpdate(this.awareness, bytes, REMOTE);
    } catch {
      // Not an awareness update.
    }
  }

  #sayWhere(): void {
    if (!this.mayWrite || this.#awarenessTimer !== undefined) return;
    this.#awarenessTimer = setTimeout(() => {
      this.#awarenessTimer = undefined;
      if (!this.#closed) void this.#say("cursor", encodeAwarenessUpdate(this.awareness, [this.doc.clientID]));
    }, AWARENESS_EVERY_MS);
  }
}

