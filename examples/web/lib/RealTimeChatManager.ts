// The guide's chat: rows are authoritative; broadcasts carry typing, and an early echo that a row replaces.
import type { SupabaseClient } from "@supabase/supabase-js";
import { Emitter } from "./emitter.ts";
import { randomId } from "./ids.ts";
import { cleanText } from "./text.ts";
import { Outbox } from "./outbox.ts";
import { outcome, rows, type Outcome } from "./rest.ts";
import type { Change, Room } from "./room.ts";
import type { RealtimeConnectionManager } from "./RealtimeConnectionManager.ts";
import { ReactionToggles, type Reaction } from "./reactions.ts";
import { TypingList } from "./typing.ts";

export interface Message {
  id: number;
  room: string;
  author: string;
  client_id: string;
  body: string;
  created_at: string;
  edited_at: string | null;
  deleted_at: string | null;
}

/** A message in the list. */
export interface Shown extends Partial<Message> {
  client_id: string;
  author: string;
  body: string;
  /** `echo`: received by broadcast, the row has not arrived yet. */
  state: "sending" | "failed" | "echo" | "stored";
  reason?: string;
}

type Draft = { kind: "new"; body: string } | { kind: "edit" | "delete"; id: number; body: string };

type ChatEvents = {
  change: [];
  /** Number of messages that were sent while this page was disconnected. */
  missed: [count: number];
  problem: [text: string];
};

const PAGE = 1000;
/** Rows that are read again before the last known one: identity numbers do not commit in order. */
const OVERLAP = 50;
/** An echo whose row does not arrive in this time was forged or refused. */
const ECHO_MS = 10_000;

export const BODY_MAX = 20_000;

export class RealTimeChatManager extends Emitter<ChatEvents> {
  readonly room: Room;
  readonly typing: TypingList;
  readonly reactions: ReactionToggles;
  readonly outbox: Outbox<Draft>;
  readonly #rows = new Map<number, Message>();
  /** Author and client id of all rows. */
  readonly #known = new Set<string>();
  readonly #echoes = new Map<string, Shown>();
  #loadedOnce = false;
  /**
   * The last id in the room's order that was read. The own insert does not advance it: after a disconnect it may be
   * answered before the channel is back, and messages of others may have lower ids.
   */
  #readUpTo = 0;

  /**
   * @param me the person of the token
   * @param presenceKey key of this tab, see `PresenceManager`
   */
  constructor(
    readonly client: SupabaseClient,
    readonly rooms: RealtimeConnectionManager,
    readonly name: string,
    readonly me: string,
    readonly tab: string,
    presenceKey: string,
  ) {
    super();
    this.outbox = new Outbox((id, draft) => this.#write(id, draft));
    this.reactions = new ReactionToggles(client, name, me);
    this.outbox.on("change", (entry) => {
      if (entry.state === "failed") this.emit("problem", `Not sent: ${entry.message}`);
      this.emit("change");
    });
    this.reactions.on("change", () => this.emit("change"));
    this.reactions.on("problem", (text) => this.emit("problem", text));
    const filter = `room=eq.${name}`;
    this.room = rooms.getChannel(
      `chat:${name}`,
      { presenceKey, changes: [{ table: "messages", filter }, { table: "reactions", filter }] },
      (room) => {
        room.onLoad(() => this.#load());
        room.on("change", (change) => this.#change(change));
        room.on("broadcast", ({ event, payload }) => this.#heard(event, payload));
        room.on("status", (status) => {
          if (status === "live") this.outbox.retryNow();
        });
      },
    );
    this.typing = new TypingList(this.room, me, tab);
    this.typing.on("change", () => this.emit("change"));
  }

  /** All messages in the order of the database, then echoes, then unsent messages. */
  list(): Shown[] {
    const stored = [...this.#rows.values()].sort((a, b) => a.id - b.id).map((row): Shown => ({ ...row, state: "stored" }));
    const drafts = this.outbox.unsettled();
    for (const { item, state, message } of drafts) {
      if (item.kind === "new") continue;
      const target = stored.find((row) => row.id === item.id);
      if (!target) continue;
      target.state = state === "failed" ? "failed" : "sending";
      if (message) target.reason = message;
      if (item.kind === "edit") target.body = item.body;
      else target.deleted_at = new Date().toISOString();
    }
    const echoes = [...this.#echoes.values()];
    const mine = drafts
      .filter(({ item, id }) => item.kind === "new" && !this.#known.has(`${this.me} ${id}`))
      .map(({ id, item, state, message }): Shown => ({
        client_id: id,
        author: this.me,
        body: item.body,
        state: state === "failed" ? "failed" : "sending",
        ...(message ? { reason: message } : {}),
      }));
    return [...stored, ...echoes, ...mine];
  }

  /** Sends a message; returns the reason of a refusal, or undefined. */
  send(text: string): string | undefined {
    const body = cleanText(text).trim();
    if (!body) return "There is nothing to send.";
    if (body.length > BODY_MAX) return `A message has at most ${BODY_MAX} characters; this one has ${body.length}.`;
    const id = randomId();
    if (!this.outbox.add(id, { kind: "new", body })) return "Too many messages wait to be sent.";
    this.typing.stop();
    void this.room.send("message", { client_id: id, author: this.me, body });
    return undefined;
  }

  edit(id: number, text: string): string | undefined {
    const body = cleanText(text);
    if (body.length > BODY_MAX) return `A message has at most ${BODY_MAX} characters.`;
    if (!this.outbox.add(randomId(), { kind: "edit", id, body })) return "Too many changes wait to be sent.";
    return undefined;
  }

  delete(id: number): string | undefined {
    if (!this.outbox.add(randomId(), { kind: "delete", id, body: "" })) return "Too many changes wait to be sent.";
    return undefined;
  }

  close(): void {
    this.typing.close();
    this.outbox.close();
    this.reactions.close();
    this.rooms.releaseChannel(`chat:${this.name}`);
    this.clear();
  }

  async #write(id: string, draft: Draft): Promise<Outcome<unknown>> {
    const messages = this.client.from("messages");
    if (draft.kind === "edit") return outcome(await messages.update({ body: draft.body }).eq("id", draft.id));
    if (draft.kind === "delete") return outcome(await messages.update({ deleted_at: new Date().toISOString() }).eq("id", draft.id));
    const answer = outcome(await messages.insert({ room: this.name, client_id: id, body: draft.body }).select().single<Message>());
    if (answer.kind === "done") this.#put(answer.data);
    // Needed while the channel is down, when no row change arrives.
    if (answer.kind === "done") this.emit("change");
    // The answer of the first try was lost after its commit: the row exists, so read it.
    if (answer.kind === "duplicate") return this.#find(id, draft.body);
    return answer;
  }

  async #find(id: string, body: string): Promise<Outcome<unknown>> {
    const answer = outcome(await this.client.from("messages").select("*").eq("author", this.me).eq("client_id", id).maybeSingle<Message>());
    if (answer.kind !== "done") return answer;
    if (!answer.data) return { kind: "retry", message: "the row is not visible yet" };
    this.#put(answer.data);
    this.emit("change");
    // Another tab used this id for another text: this text gets a new id. An own edit does not count.
    if (answer.data.body !== body && !answer.data.edited_at && !answer.data.deleted_at) this.outbox.add(randomId(), { kind: "new", body });
    return answer;
  }

  #put(row: Message): void {
    this.#rows.set(row.id, row);
    this.#known.add(`${row.author} ${row.client_id}`);
    this.#echoes.delete(`${row.author} ${row.client_id}`);
    if (row.author === this.me && this.outbox.get(row.client_id)) this.outbox.drop(row.client_id);
    else this.typing.ended(row.author);
  }

  async #load(): Promise<void> {
    const last = this.#readUpTo;
    let found: Message[];
    if (!this.#loadedOnce) {
      found = rows(await this.client.from("messages").select("*").eq("room", this.name).order("id", { ascending: false }).limit(PAGE).returns<Message[]>());
    } else {
      found = await this.#since(last - OVERLAP);
    }
    const fresh = found.filter((row) => !this.#rows.has(row.id) && row.author !== this.me);
    for (const row of found) this.#put(row);
    // Edits and deletes of older messages during the disconnect.
    if (this.#loadedOnce) await this.#refresh(last);
    await this.reactions.load();
    this.#readUpTo = Math.max(last, ...found.map((row) => row.id));
    if (this.#loadedOnce && fresh.length) this.emit("missed", fresh.length);
    this.#loadedOnce = true;
    this.emit("change");
  }

  async #since(id: number): Promise<Message[]> {
    const found: Message[] = [];
    for (let after = id; ; ) {
      const page = rows(await this.client.from("messages").select("*").eq("room", this.name).gt("id", after).order("id").limit(PAGE).returns<Message[]>());
      found.push(...page);
      const newest = page.at(-1);
      if (page.length < PAGE || !newest) return found;
      after = newest.id;
    }
  }

  async #refresh(upTo: number): Promise<void> {
    const first = Math.min(...this.#rows.keys());
    if (!Number.isFinite(first)) return;
    const page = rows(
      await this.client.from("messages").select("*").eq("room", this.name).gte("id", first).lte("id", upTo).order("id", { ascending: false }).limit(PAGE).returns<Message[]>(),
    );
    for (const row of page) this.#put(row);
  }

  #change({ table, type, new: row, old }: Change): void {
    if (table === "reactions") this.reactions.changed(type, (type === "DELETE" ? old : row) as unknown as Reaction);
    else if (type === "DELETE") this.#rows.delete(Number(old.id));
    else {
      this.#put(row as unknown as Message);
      this.#readUpTo = Math.max(this.#readUpTo, Number(row.id));
    }
    this.emit("change");
  }

  #heard(event: string, payload: unknown): void {
    if (event === "typing") return this.typing.heard(payload);
    if (event !== "message") return;
    const { client_id: id, author, body } = (payload ?? {}) as Record<string, unknown>;
    // Any member of the room can broadcast any JSON: invalid messages are ignored, and echoes without a row expire.
    if (typeof id !== "string" || typeof author !== "string" || typeof body !== "string") return;
    if (author === this.me || id.length > 40 || body.length > BODY_MAX) return;
    const key = `${author} ${id}`;
    if (this.#known.has(key)) return;
    this.#echoes.set(key, { client_id: id, author, body, state: "echo" });
    setTimeout(() => {
      if (this.#echoes.delete(key)) this.emit("change");
    }, ECHO_MS);
    this.emit("change");
  }
}
