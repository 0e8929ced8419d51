// Reactions: sets of people for each message and emoji. A toggle sets an intent: one request at a time for each (message,
// emoji), and the last intent wins.
import type { SupabaseClient } from "@supabase/supabase-js";
import { backoffMs } from "./backoff.ts";
import { Emitter } from "./emitter.ts";
import { outcome, rows } from "./rest.ts";

export interface Reaction {
  message_id: number;
  room: string;
  user_id: string;
  emoji: string;
}

const PAGE = 5000;

export class ReactionToggles extends Emitter<{ change: []; problem: [text: string] }> {
  /** `message emoji` → people, as the database has it. */
  #sets = new Map<string, Set<string>>();
  /** Own intents that the database has not confirmed. */
  readonly #wanted = new Map<string, boolean>();
  readonly #running = new Set<string>();
  #closed = false;

  constructor(
    readonly client: SupabaseClient,
    readonly room: string,
    readonly me: string,
  ) {
    super();
  }

  /** Number of own intents that the database has not confirmed. */
  get waiting(): number {
    return this.#wanted.size;
  }

  /** Emoji of a message with the people who reacted, including own intents. */
  of(message: number): { emoji: string; users: string[]; mine: boolean }[] {
    const prefix = `${message} `;
    const keys = [...new Set([...this.#sets.keys(), ...this.#wanted.keys()])].filter((key) => key.startsWith(prefix)).sort();
    return keys
      .map((key) => {
        const users = new Set(this.#sets.get(key));
        const wanted = this.#wanted.get(key);
        if (wanted === true) users.add(this.me);
        if (wanted === false) users.delete(this.me);
        return { emoji: key.slice(prefix.length), users: [...users].sort(), mine: users.has(this.me) };
      })
      .filter(({ users }) => users.length);
  }

  toggle(message: number, emoji: string): void {
    const key = `${message} ${emoji}`;
    const now = this.#wanted.get(key) ?? this.#sets.get(key)?.has(this.me) ?? false;
    this.#wanted.set(key, !now);
    this.emit("change");
    void this.#settle(key, message, emoji);
  }

  async load(): Promise<void> {
    const sets = new Map<string, Set<string>>();
    for (let at = 0; ; at += PAGE) {
      const page = rows(
        await this.client.from("reactions").select("*").eq("room", this.room).order("message_id").order("user_id").order("emoji").range(at, at + PAGE - 1).returns<Reaction[]>(),
      );
      for (const { message_id, emoji, user_id } of page) {
        const key = `${message_id} ${emoji}`;
        sets.set(key, (sets.get(key) ?? new Set()).add(user_id));
      }
      if (page.length < PAGE) break;
    }
    this.#sets = sets;
  }

  changed(type: "INSERT" | "UPDATE" | "DELETE", { message_id, emoji, user_id }: Reaction): void {
    const key = `${message_id} ${emoji}`;
    const set = this.#sets.get(key) ?? new Set();
    if (type === "DELETE") set.delete(user_id);
    else set.add(user_id);
    this.#sets.set(key, set);
  }

  close(): void {
    this.#closed = true;
    this.clear();
  }

  async #settle(key: string, message: number, emoji: string): Promise<void> {
    if (this.#running.has(key)) return;
    this.#running.add(key);
    for (let tries = 0; !this.#closed; tries++) {
      const wanted = this.#wanted.get(key);
      if (wanted === undefined) break;
      const table = this.client.from("reactions");
      const result = outcome(
        wanted
          ? await table.upsert({ message_id: message, room: this.room, emoji }, { onConflict: "message_id,user_id,emoji", ignoreDuplicates: true })
          : await table.delete().eq("message_id", message).eq("user_id", this.me).eq("emoji", emoji),
      );
      if (result.kind === "retry") {
        await new Promise((resolve) => setTimeout(resolve, backoffMs(tries)));
        continue;
      }
      // The intent changed during the request: the new one is sent next.
      if (this.#wanted.get(key) !== wanted) continue;
      this.#wanted.delete(key);
      if (result.kind === "refused") this.emit("problem", `The reaction was not taken: ${result.message}`);
      else this.changed(wanted ? "INSERT" : "DELETE", { message_id: message, room: this.room, user_id: this.me, emoji });
    }
    this.#running.delete(key);
    this.emit("change");
  }
}
