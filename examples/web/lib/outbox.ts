// Reliable writes: sent one after the other, retried with the same id until they have an answer.
import { backoffMs } from "./backoff.ts";
import { Emitter } from "./emitter.ts";
import type { Outcome } from "./rest.ts";

export interface Pending<T> {
  readonly id: string;
  readonly item: T;
  state: "sending" | "stored" | "failed";
  tries: number;
  /** Reason of the failure or retry. */
  message: string;
}

/** Maximum of waiting writes. Further ones are refused, and the text stays in its input. */
const PENDING_MAX = 1000;

type OutboxEvents<T> = { change: [entry: Pending<T>] };

export class Outbox<T> extends Emitter<OutboxEvents<T>> {
  readonly #entries = new Map<string, Pending<T>>();
  #running = false;
  #wake: (() => void) | undefined;
  #closed = false;

  /** @param write must be safe to repeat with the same id; "duplicate" counts as stored */
  constructor(readonly write: (id: string, item: T) => Promise<Outcome<unknown>>) {
    super();
  }

  /** Queues a write. Returns false if too many are waiting. */
  add(id: string, item: T): boolean {
    if (this.waiting().length >= PENDING_MAX) return false;
    const entry: Pending<T> = { id, item, state: "sending", tries: 0, message: "" };
    this.#entries.set(id, entry);
    this.emit("change", entry);
    void this.#run();
    return true;
  }

  /** Queues a failed write again. */
  retry(id: string): void {
    const entry = this.#entries.get(id);
    if (entry?.state !== "failed") return;
    entry.state = "sending";
    this.emit("change", entry);
    void this.#run();
  }

  /** Removes a write, for example because its row arrived. */
  drop(id: string): void {
    const entry = this.#entries.get(id);
    if (!entry) return;
    entry.state = "stored";
    this.#entries.delete(id);
    this.#wake?.();
    this.emit("change", entry);
  }

  get(id: string): Pending<T> | undefined {
    return this.#entries.get(id);
  }

  /** Entries without an answer. */
  waiting(): Pending<T>[] {
    return [...this.#entries.values()].filter((entry) => entry.state === "sending");
  }

  /** Entries that are not stored, oldest first. */
  unsettled(): Pending<T>[] {
    return [...this.#entries.values()].filter((entry) => entry.state !== "stored");
  }

  /** Retries now instead of after the pause. */
  retryNow(): void {
    this.#wake?.();
  }

  close(): void {
    this.#closed = true;
    this.#wake?.();
    this.clear();
  }

  // One write at a time, so a person's messages keep their order.
  async #run(): Promise<void> {
    if (this.#running) return;
    this.#running = true;
    for (let entry = this.waiting()[0]; entry && !this.#closed; entry = this.waiting()[0]) await this.#attempt(entry);
    this.#running = false;
  }

  async #attempt(entry: Pending<T>): Promise<void> {
    entry.tries += 1;
    const result = await this.write(entry.id, entry.item).catch(
      (error: Error): Outcome<never> => ({ kind: "retry", message: error.message }),
    );
    // The row arrived by another path meanwhile.
    if (!this.#entries.has(entry.id)) return;
    entry.message = result.kind === "done" ? "" : result.message;
    if (result.kind === "retry") {
      this.emit("change", entry);
      await this.#pause(backoffMs(entry.tries - 1));
      return;
    }
    entry.state = result.kind === "refused" ? "failed" : "stored";
    if (entry.state === "stored") this.#entries.delete(entry.id);
    this.emit("change", entry);
  }

  #pause(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(done, ms);
      const self = this;
      function done(): void {
        clearTimeout(timer);
        self.#wake = undefined;
        resolve();
      }
      this.#wake = done;
    });
  }
}
