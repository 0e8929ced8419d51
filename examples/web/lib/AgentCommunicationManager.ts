// The guide's agent communication: one shared channel for each agent and for the org; requests, offers, awards, work
// and messages. The daemon defines the protocol (docs/REMOTE.md); this class keeps the state that a page shows.
import { Emitter } from "./emitter.ts";
import { randomId } from "./ids.ts";
import type { RealtimeConnectionManager } from "./RealtimeConnectionManager.ts";
import type { Broadcast, Room } from "./room.ts";

export interface TaskRequest {
  id: string;
  kind: string;
  round: number;
  requires: string[];
  preview: string;
  /** When the round closes, in milliseconds since 1970. */
  closesAt: number;
  answer: "open" | "offered" | "refused" | "over";
  offer?: Offer;
}

export interface Offer {
  /** Microdollars. */
  cost: number;
  eta_ms: number;
  /** 0 to 1. */
  confidence: number;
}

export interface Assignment {
  task_id: string;
  assignment_id: string;
  epoch: number;
  confirmBy: number;
  state: "awarded" | "working" | "waiting" | "done" | "lost";
  kind: string;
  input: unknown;
  checkpoint: unknown;
  answers: unknown;
  progress: number;
  leaseMs: number;
  note: string;
}

/** A task that this page requested. */
export interface Requested {
  id: string;
  command: string;
  text: string;
  state: string;
  reason: string;
  chooses: boolean;
  offers: Map<string, Offer & { note: string }>;
  winner: string;
  epoch: number;
  result: unknown;
  question: unknown;
}

export interface Said {
  id: string;
  from: string;
  to: string;
  text: string;
  at: number;
  /** Why the daemon refused it. */
  refused: string;
}

type Key = Pick<Assignment, "task_id" | "assignment_id" | "epoch">;
type Payload = Record<string, unknown>;
type Events = { change: []; problem: [text: string] };

/** Maximum of kept requests, assignments and messages; the oldest are evicted. */
const KEPT_MAX = 200;
/** States of a task without an assignee. */
const OPEN = new Set(["scheduled", "blocked", "open"]);
const HEARTBEATS_PER_LEASE = 4;

export class AgentCommunicationManager extends Emitter<Events> {
  readonly own: Room;
  readonly orgRoom: Room;
  readonly requests = new Map<string, TaskRequest>();
  readonly assignments = new Map<string, Assignment>();
  readonly requested = new Map<string, Requested>();
  readonly messages: Said[] = [];
  readonly #beat: ReturnType<typeof setInterval>;
  readonly #beaten = new Map<string, number>();
  /** Rooms of other agents, opened for messages and shared by all of them. */
  readonly #rooms = new Set<string>();

  constructor(
    readonly rooms: RealtimeConnectionManager,
    readonly id: string,
    readonly org: string,
    /** Reads a task of this page: a hint reports that it changed, without its content. */
    readonly read: (task: string) => Promise<Payload | undefined>,
  ) {
    super();
    this.own = this.#room(`agent:${id}`, id);
    this.orgRoom = this.#room(`org:${org}`, `watcher-${randomId().slice(0, 8)}`);
    this.#beat = setInterval(() => this.#heartbeats(), 1000);
  }

  /** Sends an offer for a task; a newer offer replaces the previous one. */
  async offer(task: string, offer: Offer): Promise<void> {
    const request = this.requests.get(task);
    if (!request) return;
    if (!(offer.cost >= 0 && offer.eta_ms > 0 && offer.confidence >= 0 && offer.confidence <= 1))
      return this.emit("problem", "An offer needs a cost of at least 0, a time over 0 and a confidence of 0 to 1.");
    const sent = await this.#say("task_offer", { task_id: task, round: request.round, offer });
    if (sent) this.#set(request, { answer: "offered", offer });
  }

  async refuse(task: string): Promise<void> {
    const request = this.requests.get(task);
    if (request && (await this.#say("task_refuse", { task_id: task, round: request.round }))) this.#set(request, { answer: "refused" });
  }

  accept = (work: Assignment): Promise<boolean> => this.#say("task_accept", key(work));

  async decline(work: Assignment, reason: string): Promise<void> {
    if (await this.#say("task_refuse", { ...key(work), reason })) this.#set(work, { state: "done", note: "You refused it." });
  }

  /** Reports progress, with a checkpoint from which the next agent continues if this one fails. */
  async progress(work: Assignment, progress: number, activity: string): Promise<void> {
    this.#set(work, { progress });
    this.#beaten.set(work.assignment_id, Date.now());
    await this.#say("task_progress", { ...key(work), progress, activity, checkpoint: { progress, note: activity } });
  }

  async finish(work: Assignment, result: unknown): Promise<void> {
    if (await this.#say("task_result", { ...key(work), result })) this.#set(work, { note: "Sent, waiting for the answer." });
  }

  async fail(work: Assignment, message: string): Promise<void> {
    await this.#say("task_failure", { ...key(work), error: { message, retryable: true } });
  }

  /** Asks the requester a question; the task waits, and the slot is free. */
  async ask(work: Assignment, question: string): Promise<void> {
    if (await this.#say("task_question", { ...key(work), question, for: "input", checkpoint: { progress: work.progress } }))
      this.#set(work, { state: "waiting", note: `Asked: ${question}` });
  }

  /** Requests a task; the command id is its idempotency key, so repeating it after a disconnect creates no second task. */
  async request(task: Payload, text: string, chooses: boolean): Promise<string> {
    const command = randomId();
    const entry: Requested = {
      id: "", command, text, chooses, state: "sending", reason: "", offers: new Map(), winner: "", epoch: 0, result: undefined, question: undefined,
    };
    this.#keep(this.requested, command, entry);
    const sent = await this.#say("task_request", { task }, command);
    if (!sent) this.#set(entry, { state: "not sent", reason: "The connection is down." });
    return command;
  }

  choose = (task: string, agent: string): Promise<boolean> => this.#say("task_choose", { task_id: task, chosen: agent });
  answer = (task: string, answer: string): Promise<boolean> => this.#say("task_answer", { task_id: task, answer });
  cancel = (task: string): Promise<boolean> => this.#say("task_cancel", { task_id: task, reason: "canceled by its requester" });

  /** Sends a message to an agent, or with an org's topic to all its subscribers. A refusal arrives as an error. */
  async message(topic: string, text: string): Promise<void> {
    const own = topic === this.own.topic ? this.own : topic === this.orgRoom.topic ? this.orgRoom : this.#other(topic);
    const said: Said = { id: randomId(), from: this.id, to: topic, text, at: Date.now(), refused: "" };
    this.#remember(said);
    await own.whenLive().catch(() => undefined);
    const event = topic.startsWith("org:") ? "agent_broadcast" : "agent_message";
    const sent = await own.send(event, { agent_id: this.id, text, command_id: said.id });
    if (!sent && !said.refused) said.refused = "It was not sent.";
    this.emit("change");
  }

  close(): void {
    clearInterval(this.#beat);
    for (const topic of [this.own.topic, this.orgRoom.topic, ...this.#rooms]) this.rooms.releaseChannel(topic);
    this.clear();
  }

  #room(topic: string, presenceKey: string): Room {
    return this.rooms.getChannel(topic, { private: false, ack: false, presenceKey }, (room) => room.on("broadcast", (message) => this.#heard(room, message)));
  }

  #other(topic: string): Room {
    // Counted once, regardless of the number of messages.
    if (this.#rooms.has(topic)) {
      const room = this.rooms.getChannel(topic, { private: false, ack: false });
      this.rooms.releaseChannel(topic);
      return room;
    }
    this.#rooms.add(topic);
    return this.rooms.getChannel(topic, { private: false, ack: false }, (room) => room.on("broadcast", (message) => this.#heard(room, message)));
  }

  async #say(type: string, members: Payload, command = randomId()): Promise<boolean> {
    const payload = { type, agent_id: this.id, command_id: command, timestamp: new Date().toISOString(), ...members };
    const sent = await this.own.send("coordination", payload);
    if (!sent) this.emit("problem", "The connection is down: nothing was sent.");
    return sent;
  }

  #heard(room: Room, { event, payload }: Broadcast): void {
    if (!payload || typeof payload !== "object") return;
    const message = payload as Payload;
    if (event === "agent_message" || event === "agent_broadcast") return this.#said(room, message);
    if (event !== "coordination") return;
    if (message.type === "error") return this.#error(message);
    if (room === this.orgRoom) return this.#overheard(message);
    if (room !== this.own) return;
    const handler = this.#on[String(message.type)];
    handler?.(message);
    this.emit("change");
  }

  // Losing bidders learn the result only from the org's room: the round is over when the task has an assignee.
  #overheard(message: Payload): void {
    const task = (message.task ?? {}) as Payload;
    const request = this.requests.get(String(task.id ?? message.task_id ?? ""));
    const taken = message.type === "task_assignment" || (message.type === "task_update" && !OPEN.has(String(task.state)));
    if (!request || !taken || request.answer === "over") return;
    this.#set(request, { answer: "over" });
  }

  readonly #on: Record<string, (message: Payload) => void> = {
    task_request: (message) => this.#asked(message),
    task_offer: (message) => this.#offered(message),
    task_assignment: (message) => this.#awarded(message),
    task_start: (message) => this.#started(message),
    task_update: (message) => this.#updated(message),
    task_nudge: (message) => this.#note(message, "Show some work, or say that you cannot."),
    task_cancel: (message) => this.#canceled(message),
  };

  #asked(message: Payload): void {
    const task = (message.task ?? {}) as Payload;
    const id = String(task.id ?? "");
    if (!id) return;
    this.#keep(this.requests, id, {
      id,
      kind: String(task.kind ?? ""),
      round: Number(task.round),
      requires: Array.isArray(task.requires) ? task.requires.map(String) : [],
      preview: String(task.input_preview ?? "").slice(0, 500),
      closesAt: Date.parse(String(task.bids_close_at)) || Date.now() + 1000,
      answer: "open",
    });
  }

  #offered(message: Payload): void {
    const entry = this.#requestedTask(message.task_id);
    const offer = message.offer as (Offer & { note?: string }) | undefined;
    if (entry && offer) entry.offers.set(String(message.agent_id), { cost: Number(offer.cost), eta_ms: Number(offer.eta_ms), confidence: Number(offer.confidence), note: String(offer.note ?? "") });
  }

  #awarded(message: Payload): void {
    const task = String(message.task_id);
    const winner = String(message.agent_id);
    const entry = this.#requestedTask(task);
    if (entry) [entry.winner, entry.epoch] = [winner, Number(message.epoch)];
    const request = this.requests.get(task);
    if (request) request.answer = "over";
    // The requester also receives copies of awards to other agents.
    if (winner !== this.id) return;
    const id = String(message.assignment_id);
    this.#keep(this.assignments, id, {
      task_id: task,
      assignment_id: id,
      epoch: Number(message.epoch),
      confirmBy: Date.parse(String(message.confirm_by)) || Date.now(),
      state: "awarded",
      kind: request?.kind ?? "",
      input: request?.preview,
      checkpoint: undefined,
      answers: undefined,
      progress: 0,
      leaseMs: 30_000,
      note: "",
    });
  }

  #started(message: Payload): void {
    const id = String(message.assignment_id);
    const known = this.assignments.get(id);
    const { checkpoint } = message;
    const done = Number((checkpoint as Payload | undefined)?.progress);
    this.#keep(this.assignments, id, {
      task_id: String(message.task_id),
      assignment_id: id,
      epoch: Number(message.epoch),
      confirmBy: known?.confirmBy ?? 0,
      state: "working",
      kind: String(message.kind ?? known?.kind ?? ""),
      input: message.input,
      checkpoint,
      answers: message.answers,
      progress: Number.isFinite(done) ? done : 0,
      leaseMs: Number(message.lease_ms) || 30_000,
      note: checkpoint ? "Another agent began this; go on from its checkpoint." : "",
    });
  }

  #updated(message: Payload): void {
    const task = (message.task ?? {}) as Payload;
    const id = String(task.id ?? "");
    const byCommand = typeof message.in_reply_to === "string" ? this.requested.get(message.in_reply_to) : undefined;
    const entry = byCommand ?? this.#requestedTask(id);
    if (entry) {
      entry.id = id;
      entry.state = String(task.state);
      entry.reason = String(task.state_reason ?? "");
      if (["completed", "waiting", "failed"].includes(entry.state)) void this.#look(entry);
    }
    if (!["completed", "failed", "canceled"].includes(String(task.state))) return;
    const request = this.requests.get(id);
    if (request) request.answer = "over";
    for (const work of this.assignments.values())
      if (work.task_id === id && work.state === "working") this.#set(work, { state: "done", note: `The task is ${String(task.state)}.` });
  }

  async #look(entry: Requested): Promise<void> {
    const task = await this.read(entry.id);
    if (!task) return;
    this.#set(entry, { state: String(task.state), result: task.result, question: task.question });
  }

  #canceled(message: Payload): void {
    const work = this.assignments.get(String(message.assignment_id));
    if (work) this.#set(work, { state: "lost", note: `Stopped: ${String(message.reason ?? "canceled")}` });
  }

  #note(message: Payload, note: string): void {
    const work = this.assignments.get(String(message.assignment_id));
    if (work) this.#set(work, { note });
  }

  #error(message: Payload): void {
    const [code, text] = [String(message.code), String(message.message ?? "")];
    const said = this.messages.find((one) => one.id === message.in_reply_to);
    const entry = typeof message.in_reply_to === "string" ? this.requested.get(message.in_reply_to) : undefined;
    if (said) said.refused = `${code}: ${text}`;
    else if (entry) [entry.state, entry.reason] = ["refused", text];
    else if (code === "fenced" || code === "conflict") this.#lost(String(message.task_id), code);
    else this.#unanswered(code, text);
    this.emit("change");
  }

  // A refusal may lack the command id: it then refers to the last message without an answer.
  #unanswered(code: string, text: string): void {
    const last = this.messages.findLast((one) => one.from === this.id && !one.refused);
    if (code === "forbidden" && last && Date.now() - last.at < 5000) last.refused = `${code}: ${text}`;
    else this.emit("problem", `${code}: ${text}`);
  }

  #lost(task: string, code: string): void {
    const open = [...this.assignments.values()].filter((work) => work.task_id === task && ["awarded", "working"].includes(work.state));
    for (const work of open) this.#set(work, { state: "lost", note: code === "fenced" ? "fenced: the task was given to another agent." : "The task is in another state." });
  }

  #said(room: Room, message: Payload): void {
    const from = String(message.agent_id ?? "?").slice(0, 100);
    if (from === this.id) return;
    this.#remember({ id: randomId(), from, to: room.topic, text: String(message.text ?? JSON.stringify(message)).slice(0, 2000), at: Date.now(), refused: "" });
    this.emit("change");
  }

  #remember(said: Said): void {
    this.messages.push(said);
    if (this.messages.length > KEPT_MAX) this.messages.shift();
    this.emit("change");
  }

  #requestedTask(id: unknown): Requested | undefined {
    return [...this.requested.values()].find((entry) => entry.id !== "" && entry.id === id);
  }

  #heartbeats(): void {
    for (const work of this.assignments.values()) {
      if (work.state !== "working") continue;
      const last = this.#beaten.get(work.assignment_id) ?? 0;
      if (Date.now() - last < work.leaseMs / HEARTBEATS_PER_LEASE || !this.own.joined) continue;
      this.#beaten.set(work.assignment_id, Date.now());
      void this.#say("heartbeat", key(work));
    }
  }

  #keep<T>(map: Map<string, T>, id: string, value: T): void {
    map.set(id, value);
    const oldest = map.keys().next();
    if (map.size > KEPT_MAX && !oldest.done) map.delete(oldest.value);
    this.emit("change");
  }

  #set<T extends object>(target: T, change: Partial<T>): void {
    Object.assign(target, change);
    this.emit("change");
  }
}

const key = ({ task_id, assignment_id, epoch }: Assignment): Key => ({ task_id, assignment_id, epoch });
