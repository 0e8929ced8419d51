// The guide's connection manager: rooms are shared, reference-counted, and closed after an idle time.
import type { SupabaseClient } from "@supabase/supabase-js";
import { Emitter } from "./emitter.ts";
import { Room, type RoomOptions, type RoomStatus } from "./room.ts";

interface Held {
  room: Room;
  users: number;
  idleSince: number | undefined;
}

/** Order of the statuses; the head of the page shows the worst of all rooms. */
const WORST: RoomStatus[] = ["refused", "down", "connecting", "loading", "live", "closed"];

/**
 * Shares channels between the parts of a page. `getChannel` returns the same room for the same topic and counts its
 * users; `releaseChannel` releases it; `pruneInactive` (on a timer) closes rooms without users for `idleMs`.
 */
export class RealtimeConnectionManager extends Emitter<{ status: [status: RoomStatus, detail: string] }> {
  readonly #rooms = new Map<string, Held>();
  readonly #timer: ReturnType<typeof setInterval>;

  constructor(
    readonly client: SupabaseClient,
    readonly idleMs = 30_000,
  ) {
    super();
    this.#timer = setInterval(() => this.pruneInactive(), Math.max(idleMs / 2, 10));
  }

  /**
   * Returns the room of `topic` and counts the caller as a user. `prepare` runs for a new room before it subscribes:
   * use it for `onLoad` and for listeners that must receive every event.
   */
  getChannel(topic: string, options: RoomOptions = {}, prepare?: (room: Room) => void): Room {
    const held = this.#rooms.get(topic);
    if (held) {
      if (JSON.stringify(held.room.options) !== JSON.stringify(options))
        throw new Error(`${topic} is open with other options: its bindings cannot be changed after subscribe()`);
      held.users += 1;
      held.idleSince = undefined;
      return held.room;
    }
    const room = new Room(this.client, topic, options);
    this.#rooms.set(topic, { room, users: 1, idleSince: undefined });
    room.on("status", () => this.#told());
    prepare?.(room);
    void room.open();
    return room;
  }

  /** Releases a room. It stays open for `idleMs`, so that a page that requests it again finds it live. */
  releaseChannel(topic: string): void {
    const held = this.#rooms.get(topic);
    if (!held || held.users === 0) return;
    held.users -= 1;
    if (held.users === 0) held.idleSince = Date.now();
  }

  /** Closes rooms without users for `idleMs`; returns their topics. */
  pruneInactive(now = Date.now()): string[] {
    const idle = [...this.#rooms].filter(([, held]) => held.idleSince !== undefined && now - held.idleSince >= this.idleMs);
    for (const [topic, held] of idle) {
      this.#rooms.delete(topic);
      void held.room.close();
    }
    return idle.map(([topic]) => topic);
  }

  /** Returns the number of users of a topic; 0 for one that is not open. */
  users(topic: string): number {
    return this.#rooms.get(topic)?.users ?? 0;
  }

  get status(): { status: RoomStatus; detail: string } {
    const rooms = [...this.#rooms.values()].map((held) => held.room);
    const worst = WORST.map((status) => rooms.find((room) => room.status === status)).find(Boolean);
    return { status: worst?.status ?? "connecting", detail: worst?.detail ?? "" };
  }

  /** Closes all rooms. */
  async close(): Promise<void> {
    clearInterval(this.#timer);
    const rooms = [...this.#rooms.values()];
    this.#rooms.clear();
    await Promise.all(rooms.map((held) => held.room.close()));
    this.clear();
  }

  #told(): void {
    const { status, detail } = this.status;
    this.emit("status", status, detail);
  }
}
