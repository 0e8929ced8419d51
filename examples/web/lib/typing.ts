// Typing indicators: broadcasts that expire, so that a tab that dies stops typing.
import { Emitter } from "./emitter.ts";
import type { Room } from "./room.ts";

const SAY_EVERY_MS = 3000;
const EXPIRES_MS = 5000;
/** Maximum of remembered typists. */
const TYPISTS_MAX = 50;

export class TypingList extends Emitter<{ change: [] }> {
  readonly #typists = new Map<string, { user: string; timer: ReturnType<typeof setTimeout> }>();
  #saidAt = 0;

  constructor(
    readonly room: Room,
    readonly me: string,
    readonly tab: string,
  ) {
    super();
  }

  /** Other people who are typing. */
  users(): string[] {
    return [...new Set([...this.#typists.values()].map((typist) => typist.user))].filter((user) => user !== this.me).sort();
  }

  /** Broadcasts that this person is typing, at most every three seconds. */
  say(): void {
    if (Date.now() - this.#saidAt < SAY_EVERY_MS) return;
    this.#saidAt = Date.now();
    void this.room.send("typing", { user: this.me, tab: this.tab, typing: true });
  }

  stop(): void {
    if (!this.#saidAt) return;
    this.#saidAt = 0;
    void this.room.send("typing", { user: this.me, tab: this.tab, typing: false });
  }

  /** Ends a person's typing, because their message arrived. */
  ended(user: string): void {
    for (const [tab, typist] of this.#typists) if (typist.user === user) this.#remove(tab);
  }

  /** Ends the typing of a tab that left. */
  left(tab: string): void {
    this.#remove(tab);
  }

  heard(payload: unknown): void {
    const { user, tab, typing } = (payload ?? {}) as Record<string, unknown>;
    if (typeof user !== "string" || typeof tab !== "string" || tab.length > 64) return;
    this.#remove(tab, typing === true);
    if (typing !== true || this.#typists.size >= TYPISTS_MAX) return;
    this.#typists.set(tab, { user, timer: setTimeout(() => this.#remove(tab), EXPIRES_MS) });
    this.emit("change");
  }

  close(): void {
    this.stop();
    for (const { timer } of this.#typists.values()) clearTimeout(timer);
    this.#typists.clear();
    this.clear();
  }

  #remove(tab: string, quiet = false): void {
    const typist = this.#typists.get(tab);
    if (!typist) return;
    clearTimeout(typist.timer);
    this.#typists.delete(tab);
    if (!quiet) this.emit("change");
  }
}
