// The guide's batcher: combines many small items into few messages, keeps their order, and retries a refused batch.
import { backoffMs } from "./backoff.ts";

export interface BatcherOptions<T> {
  /** Sends a batch; resolves to true if it was accepted. A rejected promise counts as refused. */
  send: (items: T[]) => Promise<boolean>;
  /** Maximum wait of an item, in milliseconds. */
  everyMs: number;
  /** Number of items at which a batch is sent at once. */
  maxItems: number;
  /** Maximum of queued items. */
  maxQueued: number;
  /** Policy for a full queue: by default the oldest item is dropped, which suits positions; return false to refuse the newest. */
  onFull?: (dropped: T) => void;
}

export class MessageBatcher<T> {
  #queue: T[] = [];
  #timer: ReturnType<typeof setTimeout> | undefined;
  #flushing: Promise<void> | undefined;
  #failures = 0;
  #closed = false;
  /** Items that were dropped because the queue was full. */
  dropped = 0;

  constructor(readonly options: BatcherOptions<T>) {}

  get size(): number {
    return this.#queue.length;
  }

  add(item: T): void {
    if (this.#closed) return;
    if (this.#queue.length >= this.options.maxQueued) {
      const oldest = this.#queue.shift() as T;
      this.dropped += 1;
      this.options.onFull?.(oldest);
    }
    this.#queue.push(item);
    if (this.#queue.length >= this.options.maxItems && this.#failures === 0) void this.flush();
    else this.#schedule();
  }

  /** Sends the queued items. Flushes never overlap, so batches keep their order; a failed batch is sent first next time. */
  async flush(): Promise<void> {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#flushing ??= this.#send().finally(() => (this.#flushing = undefined));
    await this.#flushing;
    if (this.#queue.length) this.#schedule();
  }

  /** Retries now, for example when the room is live again. */
  retryNow(): void {
    this.#failures = 0;
    if (this.#queue.length) void this.flush();
  }

  /** Stops after a last flush. Call it on `pagehide`. */
  async close(): Promise<void> {
    await this.flush();
    this.#closed = true;
    clearTimeout(this.#timer);
  }

  async #send(): Promise<void> {
    const batch = this.#queue.slice(0, this.options.maxItems);
    if (!batch.length) return;
    const droppedBefore = this.dropped;
    const accepted = await this.options.send(batch).catch(() => false);
    if (!accepted) {
      this.#failures += 1;
      return;
    }
    this.#failures = 0;
    // A full queue may have dropped items of this batch from its front meanwhile.
    this.#queue.splice(0, Math.max(0, batch.length - (this.dropped - droppedBefore)));
  }

  #schedule(): void {
    if (this.#timer !== undefined || this.#closed) return;
    const wait = this.#failures ? backoffMs(this.#failures - 1) : this.options.everyMs;
    this.#timer = setTimeout(() => void this.flush(), wait);
  }
}
