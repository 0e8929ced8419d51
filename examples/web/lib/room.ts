// One channel of supabase-js with the order of events that every page needs:
// subscribe → SUBSCRIBED → read the rows → apply the changes received meanwhile → live; the same after every disconnect.
import type { RealtimeChannel, SupabaseClient } from "@supabase/supabase-js";
import { backoffMs } from "./backoff.ts";
import { Emitter } from "./emitter.ts";

export type RoomStatus = "connecting" | "loading" | "live" | "down" | "refused" | "closed";

export type Row = Record<string, unknown>;

/** A row change of `postgres_changes`. */
export interface Change {
  table: string;
  type: "INSERT" | "UPDATE" | "DELETE";
  new: Row;
  old: Row;
}

/** A row binding; all of a room's must be known before it subscribes. */
export interface Binding {
  table: string;
  filter?: string;
  event?: "*" | "INSERT" | "UPDATE" | "DELETE";
}

export interface RoomOptions {
  /** Defaults to true: only members may enter. */
  private?: boolean;
  /** Presence key of this tab. Without it, the room has no presence. */
  presenceKey?: string;
  /** Whether `send` waits for the server's acknowledgement. */
  ack?: boolean;
  changes?: Binding[];
}

export interface Broadcast {
  event: string;
  payload: unknown;
  /** Present in rooms with a history; `replayed` marks missed messages. */
  meta?: { id?: string; replayed?: boolean };
}

type RoomEvents = {
  status: [status: RoomStatus, detail: string];
  broadcast: [message: Broadcast];
  change: [change: Change];
  presence: [];
  /** A message of the server about the channel, like a rate limit. */
  system: [message: { status: string; message: string }];
};

/** The server confirms row bindings by a message; without it (other servers), the room continues after this time. */
const CONFIRM_WITHIN_MS = 3000;
/** Maximum of changes buffered during a read; above it, the rows are read again instead. */
const HELD_MAX = 10_000;

export class Room extends Emitter<RoomEvents> {
  channel: RealtimeChannel;
  status: RoomStatus = "connecting";
  detail = "";
  readonly #loaders: (() => Promise<void>)[] = [];
  readonly #bindings: Binding[];
  #held: Change[] = [];
  #overflow = false;
  #loading: Promise<void> | undefined;
  #again = false;
  #confirm: ReturnType<typeof setTimeout> | undefined;
  #joined = false;
  #reopen: ReturnType<typeof setTimeout> | undefined;
  #reopens = 0;

  constructor(
    readonly client: SupabaseClient,
    readonly topic: string,
    readonly options: RoomOptions = {},
  ) {
    super();
    this.#bindings = options.changes ?? [];
    this.channel = this.#make();
  }

  // Bindings of presence and rows must exist before subscribe(): supabase-js throws afterwards.
  #make(): RealtimeChannel {
    const { presenceKey, ack = false } = this.options;
    const channel = this.client.channel(this.topic, {
      config: {
        private: this.options.private ?? true,
        broadcast: { ack, self: false },
        ...(presenceKey === undefined ? {} : { presence: { key: presenceKey } }),
      },
    });
    channel.on("broadcast", { event: "*" }, (message) => this.emit("broadcast", message as unknown as Broadcast));
    channel.on("system", {}, (message: { extension?: string; status?: string; message?: string }) => this.#system(message));
    if (presenceKey !== undefined) channel.on("presence", { event: "sync" }, () => this.emit("presence"));
    for (const { table, filter, event = "*" } of this.#bindings) {
      const binding = { event, schema: "public", table, ...(filter ? { filter } : {}) } as { event: "*"; schema: string; table: string };
      channel.on("postgres_changes", binding, (payload) =>
        this.#change({ table, type: payload.eventType, new: payload.new as Row, old: payload.old as Row }),
      );
    }
    return channel;
  }

  /** Adds a reader that runs at every (re)subscription, before changes are applied. Call it before `open`. */
  onLoad(load: () => Promise<void>): void {
    this.#loaders.push(load);
  }

  /** Subscribes. Waits for the token first, because a private join with the anon key would be refused. */
  async open(): Promise<void> {
    await this.client.realtime.setAuth().catch(() => undefined);
    if (this.status === "closed") return;
    this.channel.subscribe((status, error) => this.#subscribed(status, error));
  }

  /** Returns once the room is live; throws when it is refused or closed. */
  whenLive(): Promise<void> {
    if (this.status === "live") return Promise.resolve();
    return new Promise((resolve, reject) => {
      const off = this.on("status", (status, detail) => {
        if (status !== "live" && status !== "refused" && status !== "closed") return;
        off();
        if (status === "live") resolve();
        else reject(new Error(`${this.topic}: ${status} ${detail}`));
      });
    });
  }

  get joined(): boolean {
    return this.#joined;
  }

  /**
   * Sends a broadcast. Returns false if it was not sent or not accepted. It never falls back to HTTP, which would
   * change the order.
   */
  async send(event: string, payload: object): Promise<boolean> {
    if (!this.#joined) return false;
    const result = await this.channel.send({ type: "broadcast", event, payload });
    return result === "ok";
  }

  /** Reads the rows again, as after a disconnect; for a gap that the page detected itself. */
  reload(): void {
    if (this.#joined) void this.#load();
  }

  async close(): Promise<void> {
    this.#joined = false;
    clearTimeout(this.#confirm);
    clearTimeout(this.#reopen);
    this.#set("closed", "");
    await this.client.removeChannel(this.channel);
    this.clear();
  }

  #set(status: RoomStatus, detail: string): void {
    if (this.status === "closed" || (this.status === status && this.detail === detail)) return;
    [this.status, this.detail] = [status, detail];
    this.emit("status", status, detail);
  }

  #subscribed(status: string, error: Error | undefined): void {
    if (this.status === "closed") return;
    if (status === "SUBSCRIBED") {
      this.#joined = true;
      this.#reopens = 0;
      // Changes from before a disconnect are older than the rows that are read now.
      this.#held = [];
      this.#set("loading", "");
      clearTimeout(this.#confirm);
      if (this.#bindings.length) this.#confirm = setTimeout(() => void this.#load(), CONFIRM_WITHIN_MS);
      else void this.#load();
      return;
    }
    this.#joined = false;
    clearTimeout(this.#confirm);
    const message = error?.message ?? "";
    if (/unauthorized|not permitted|no permission/i.test(message)) {
      this.#set("refused", "You are not a member here.");
      // Otherwise supabase-js would retry the join without an end.
      void this.client.removeChannel(this.channel);
    } else if (this.status !== "refused") {
      this.#set("down", message);
      if (status === "CLOSED") this.#openAgain();
    }
  }

  // The server closed the channel, for example because its token lost a right. supabase-js does not rejoin a closed
  // channel, so a new one joins. Without the right the join is refused, and the page shows that.
  #openAgain(): void {
    clearTimeout(this.#reopen);
    this.#reopen = setTimeout(() => {
      this.channel = this.#make();
      void this.open();
    }, backoffMs(this.#reopens++));
  }

  #system(message: { extension?: string; status?: string; message?: string }): void {
    const rows = message.extension === "postgres_changes";
    // "ok": the bindings are active from now on. "error": changes may be missing. Both require a read.
    if (rows && this.#joined) {
      clearTimeout(this.#confirm);
      void this.#load();
    }
    if (message.status === "error") this.emit("system", { status: "error", message: message.message ?? "" });
  }

  #change(change: Change): void {
    if (!this.#loading && this.status === "live") return this.emit("change", change);
    if (this.#held.length < HELD_MAX) this.#held.push(change);
    else this.#overflow = true;
  }

  // One read at a time; a reconnect during a read starts another read after it.
  async #load(): Promise<void> {
    if (this.#loading) {
      this.#again = true;
      return;
    }
    this.#loading = this.#loadAll();
    await this.#loading;
    this.#loading = undefined;
    if (this.#again && this.#joined) {
      this.#again = false;
      return this.#load();
    }
    if (!this.#joined) return;
    for (const change of this.#held.splice(0)) this.emit("change", change);
    if (this.#overflow) {
      this.#overflow = false;
      return this.#load();
    }
    this.#set("live", "");
  }

  async #loadAll(): Promise<void> {
    for (let tries = 0; this.#joined; tries++) {
      try {
        for (const load of this.#loaders) await load();
        return;
      } catch (error) {
        this.#set("loading", (error as Error).message);
        await new Promise((resolve) => setTimeout(resolve, backoffMs(tries)));
      }
    }
  }
}
