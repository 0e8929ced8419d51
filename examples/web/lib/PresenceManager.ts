// The guide's presence: members by person and tab. A tab is tracked after SUBSCRIBED and again after every disconnect.
import { Emitter } from "./emitter.ts";
import type { Room } from "./room.ts";

/** The presence state of one tab. `user` and `tab` are always present. */
export interface Here {
  user: string;
  tab: string;
  name: string;
  [member: string]: unknown;
}

type PresenceEvents = {
  sync: [];
  join: [tabs: Here[]];
  leave: [tabs: Here[]];
  /** Tracking was refused; other members do not see this tab. */
  failed: [message: string];
};

/** Changes of the own state within this time are coalesced: more than 10 a second would be refused or delayed. */
const TRACK_EVERY_MS = 250;
const RETRY_MS = 2000;

/** Returns the presence key of a tab; two tabs of a person are two presences. */
export const presenceKey = (user: string, tab: string): string => `${user}.${tab.slice(0, 8)}`;

export class PresenceManager<State extends Here = Here> extends Emitter<PresenceEvents> {
  #state: State;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #trackedAt = 0;
  #seen = new Map<string, Here>();
  #closed = false;

  /** @param state the presence state of this tab */
  constructor(
    readonly room: Room,
    state: State,
  ) {
    super();
    this.#state = state;
    room.on("presence", () => this.#sync());
    room.on("status", (status) => {
      if (status === "live") void this.#track();
    });
    if (room.status === "live") void this.#track();
  }

  /** Changes the own state; changes within a short time are sent as one, the last. */
  update(change: Partial<State>): void {
    this.#state = { ...this.#state, ...change };
    if (this.#timer !== undefined) return;
    const wait = Math.max(0, this.#trackedAt + TRACK_EVERY_MS - Date.now());
    this.#timer = setTimeout(() => void this.#track(), wait);
  }

  get state(): State {
    return this.#state;
  }

  /** All tabs, including this one, in a stable order. Invalid entries are omitted: any member may track any JSON. */
  tabs(): Here[] {
    const metas = Object.values(this.room.channel.presenceState<Record<string, unknown>>()).flat();
    const tabs = metas.filter(isHere).map((meta) => meta as unknown as Here);
    // While a socket is replaced, the tab is present twice for a moment: it is shown once.
    const byTab = new Map(tabs.map((tab) => [tab.tab, tab]));
    return [...byTab.values()].sort((a, b) => (a.user + a.tab < b.user + b.tab ? -1 : 1));
  }

  /** People with their tabs, in a stable order. */
  people(): { user: string; name: string; tabs: Here[] }[] {
    const people = new Map<string, Here[]>();
    for (const tab of this.tabs()) people.set(tab.user, [...(people.get(tab.user) ?? []), tab]);
    return [...people].map(([user, tabs]) => ({ user, name: tabs[0]?.name ?? user, tabs }));
  }

  async close(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#timer);
    if (this.room.joined) await this.room.channel.untrack();
    this.clear();
  }

  async #track(): Promise<void> {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    if (this.#closed || !this.room.joined) return;
    this.#trackedAt = Date.now();
    const result = await this.room.channel.track(this.#state);
    if (result === "ok" || this.#closed) return;
    this.emit("failed", result === "error" ? "The others cannot see you: presence was refused." : "The others may not see you yet.");
    this.#timer ??= setTimeout(() => void this.#track(), RETRY_MS);
  }

  #sync(): void {
    const now = new Map(this.tabs().map((tab) => [tab.tab, tab]));
    const came = [...now.values()].filter((tab) => !this.#seen.has(tab.tab));
    const left = [...this.#seen.values()].filter((tab) => !now.has(tab.tab));
    this.#seen = now;
    if (came.length) this.emit("join", came);
    if (left.length) this.emit("leave", left);
    this.emit("sync");
  }
}

function isHere(meta: Record<string, unknown>): boolean {
  return ["user", "tab", "name"].every((member) => typeof meta[member] === "string" && (meta[member] as string).length <= 200);
}
