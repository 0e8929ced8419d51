// Finds lost updates: state vectors, and the updates that answer them. Several tabs can answer; one answer is enough.
import * as Y from "yjs";

/** Maximum random delay of an answer, so that only one of many tabs answers. */
const JITTER_MS = 200;
/** A larger answer would be refused as a broadcast; the table has the update. */
const ANSWER_MAX = 2_500_000;
const ASK_EVERY_MS = 1000;

/** Returns true if `theirs` has an update that `ours` lacks. */
export function missing(ours: Map<number, number>, theirs: Map<number, number>): boolean {
  for (const [client, clock] of theirs) if (clock > (ours.get(client) ?? 0)) return true;
  return false;
}

const own = (doc: Y.Doc): Map<number, number> => Y.decodeStateVector(Y.encodeStateVector(doc));

export class MissingUpdates {
  readonly #answers = new Map<ReturnType<typeof setTimeout>, Map<number, number>>();
  #askedAt = 0;
  #askTimer: ReturnType<typeof setTimeout> | undefined;

  constructor(
    readonly doc: Y.Doc,
    readonly say: (event: "sync1" | "sync2", bytes: Uint8Array) => Promise<boolean>,
  ) {}

  /** Sends our state vector, so that other tabs send the missing updates; at most once a second. */
  ask(): void {
    if (this.#askTimer !== undefined) return;
    this.#askTimer = setTimeout(() => {
      this.#askTimer = undefined;
      this.#askedAt = Date.now();
      void this.say("sync1", Y.encodeStateVector(this.doc));
    }, Math.max(0, this.#askedAt + ASK_EVERY_MS - Date.now()));
  }

  /** Asks if an update cannot be applied because an earlier one was lost. */
  askIfLacking(): void {
    if (this.doc.store.pendingStructs || this.doc.store.pendingDs) this.ask();
  }

  /** Handles a state vector: answers with the updates that the sender lacks, and asks for those that we lack. */
  asked(vector: Uint8Array): void {
    let theirs: Map<number, number>;
    try {
      theirs = Y.decodeStateVector(vector);
    } catch {
      return; // Not a state vector.
    }
    if (missing(own(this.doc), theirs)) this.ask();
    if (!missing(theirs, own(this.doc))) return;
    const timer = setTimeout(() => {
      this.#answers.delete(timer);
      const update = Y.encodeStateAsUpdate(this.doc, vector);
      if (update.byteLength <= ANSWER_MAX) void this.say("sync2", update);
    }, Math.random() * JITTER_MS);
    this.#answers.set(timer, theirs);
  }

  /** Handles another tab's answer: drops our own pending answers that it covers. */
  answered(update: Uint8Array): void {
    let to: Map<number, number>;
    try {
      to = Y.parseUpdateMeta(update).to;
    } catch {
      return;
    }
    for (const [timer, theirs] of this.#answers) {
      const after = new Map(theirs);
      for (const [client, clock] of to) after.set(client, Math.max(clock, after.get(client) ?? 0));
      if (missing(after, own(this.doc))) continue;
      clearTimeout(timer);
      this.#answers.delete(timer);
    }
  }

  close(): void {
    clearTimeout(this.#askTimer);
    for (const timer of this.#answers.keys()) clearTimeout(timer);
    this.#answers.clear();
  }
}
