// The guide's presence of agents: the profile of this page as an agent, and the roster of an org.
import { Emitter } from "./emitter.ts";
import type { Room } from "./room.ts";

/** The profile that an agent tracks on `agent:<id>`; it makes the agent eligible. */
export interface Profile {
  capabilities: string[];
  slots: number;
  description: string;
  /** What the agent does now, for the roster. */
  activity_type?: string;
  current_task?: string | null;
  /** 0 to 1. */
  progress?: number | null;
}

/** A line of the roster, as the daemon shows agents on `org:<org>`. */
export interface RosterLine {
  agent: string;
  activity: string;
  description: string;
  task: string;
  progress: number | undefined;
}

const RETRY_MS = 2000;

export class AgentPresenceManager extends Emitter<{ change: []; failed: [message: string] }> {
  #profile: Profile | undefined;
  #retry: ReturnType<typeof setTimeout> | undefined;

  constructor(
    readonly own: Room,
    readonly org: Room,
  ) {
    super();
    own.on("status", (status) => {
      if (status === "live") void this.#track();
    });
    org.on("presence", () => this.emit("change"));
  }

  /** Sets the profile; undefined ends the registration, and the agent's tasks are awarded to others at once. */
  async set(profile: Profile | undefined): Promise<void> {
    this.#profile = profile;
    if (profile) await this.#track();
    else if (this.own.joined) await this.own.channel.untrack();
    this.emit("change");
  }

  get profile(): Profile | undefined {
    return this.#profile;
  }

  /** Agents of the org that are present. */
  roster(): RosterLine[] {
    const state = this.org.channel.presenceState<Record<string, unknown>>();
    return Object.entries(state)
      .flatMap(([key, metas]) => metas.map((meta) => line(key, meta)))
      .sort((a, b) => (a.agent < b.agent ? -1 : 1));
  }

  close(): void {
    clearTimeout(this.#retry);
    this.clear();
  }

  // Only after SUBSCRIBED: a track before the join is a push that fails. The daemon may still have the presence of the
  // disconnected socket; the newest one counts.
  async #track(): Promise<void> {
    clearTimeout(this.#retry);
    if (!this.#profile || !this.own.joined) return;
    const result = await this.own.channel.track({ ...this.#profile });
    if (result === "ok") return;
    this.emit("failed", "You are not seen as an agent yet.");
    this.#retry = setTimeout(() => void this.#track(), RETRY_MS);
  }
}

function line(key: string, meta: Record<string, unknown>): RosterLine {
  const text = (value: unknown): string => (typeof value === "string" ? value.slice(0, 200) : "");
  const progress = Number(meta.progress);
  return {
    agent: text(meta.agent_id) || key,
    activity: text(meta.activity_type) || "idle",
    description: text(meta.description),
    task: text(meta.current_task),
    progress: meta.progress !== undefined && meta.progress !== null && Number.isFinite(progress) ? Math.min(1, Math.max(0, progress)) : undefined,
  };
}
