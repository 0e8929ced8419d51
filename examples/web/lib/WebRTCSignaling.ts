// The guide's signalling: presence is the roster; broadcasts carry offers, answers and candidates, each with an
// addressee. Media does not pass through the server: it continues while the signalling is down.
import { Emitter } from "./emitter.ts";
import { randomId } from "./ids.ts";
import { Peer, type SignalKind } from "./Peer.ts";
import type { Here, PresenceManager } from "./PresenceManager.ts";
import type { Room } from "./room.ts";

export interface Signal {
  from: string;
  to: string;
  /** The sender's session of this pair; another value starts a new session. */
  call: string;
  /** The addressee's session to which the signal belongs, if known. */
  re?: string;
  seq: number;
  description?: RTCSessionDescriptionInit;
  candidate?: RTCIceCandidateInit | null;
}

interface Pair {
  peer: Peer;
  tab: string;
  call: string;
  remote: string | undefined;
  heardSeq: number;
  seq: number;
  /** Signals of a pair are applied one after the other. */
  work: Promise<void>;
  leftAt: number | undefined;
  madeAt: number;
  tries: number;
}

type Events = {
  change: [];
  message: [tab: string, text: string];
  problem: [text: string];
};

/** Maximum members of a mesh, in which every member sends to every other. */
export const CALL_MAX = 4;
/** Time after which a tab that left the roster, and sends nothing over the connection, is removed. */
const LEAVE_MS = 6000;
const SILENT_MS = 3000;
/** Time after which a pair that is not connected starts a new session. */
const ANSWER_MS = 15_000;
const TRIES_MAX = 3;
const SEND_AGAIN_MS = 500;
const OUT_MAX = 500;
const EARLY_MAX = 100;

export class WebRTCSignaling extends Emitter<Events> {
  readonly #pairs = new Map<string, Pair>();
  readonly #unreachable = new Set<string>();
  #tracks: [MediaStreamTrack, MediaStream][] = [];
  #out: [SignalKind, Signal][] = [];
  readonly #early: [string, unknown][] = [];
  #sending = false;
  #joined = false;
  #closed = false;
  readonly #sweep: ReturnType<typeof setInterval>;

  constructor(
    readonly room: Room,
    readonly presence: PresenceManager,
    readonly tab: string,
    readonly config: RTCConfiguration = {},
    readonly answerMs = ANSWER_MS,
  ) {
    super();
    room.on("broadcast", ({ event, payload }) => this.#heard(event, payload));
    room.on("status", (status) => status === "live" && void this.#flush());
    presence.on("sync", () => this.#roster());
    this.#sweep = setInterval(() => this.#look(), 1000);
  }

  get peers(): ReadonlyMap<string, Pair> {
    return this.#pairs;
  }

  /** Tabs that did not answer. */
  get unreachable(): ReadonlySet<string> {
    return this.#unreachable;
  }

  /** Tabs that are in the call, oldest first; at most `CALL_MAX`. */
  members(): Here[] {
    const inCall = this.presence.tabs().filter((tab) => typeof tab.since === "number");
    return inCall.sort((a, b) => Number(a.since) - Number(b.since) || (a.tab < b.tab ? -1 : 1)).slice(0, CALL_MAX);
  }

  /** Returns true if the call has no place for this tab. */
  full(): boolean {
    return !this.#joined && this.members().length >= CALL_MAX;
  }

  join(): void {
    this.#joined = true;
    this.presence.update({ since: Date.now() });
    this.#roster();
  }

  /** Leaves the call: sends `bye` to all members and closes all connections. */
  leave(): void {
    this.#joined = false;
    this.presence.update({ since: undefined } as Partial<Here>);
    for (const pair of this.#pairs.values()) this.#send(pair, "bye", {});
    for (const tab of [...this.#pairs.keys()]) this.#drop(tab);
    this.#unreachable.clear();
    this.emit("change");
  }

  /** Sets the tracks that are sent to all members: camera, microphone and screen. */
  setTracks(tracks: [MediaStreamTrack, MediaStream][]): void {
    this.#tracks = tracks;
    for (const pair of this.#pairs.values()) pair.peer.setTracks(tracks);
  }

  /** Sends a text over the data channels; returns the number of members that get it. */
  say(text: string): number {
    return [...this.#pairs.values()].filter((pair) => pair.peer.say(text)).length;
  }

  close(): void {
    if (this.#joined) this.leave();
    this.#closed = true;
    clearInterval(this.#sweep);
    this.clear();
  }

  #roster(): void {
    if (!this.#joined) return;
    const members = this.members();
    if (!members.some((member) => member.tab === this.tab)) return this.emit("change");
    const here = new Set(members.map((member) => member.tab));
    for (const tab of here) if (tab !== this.tab && !this.#pairs.has(tab) && !this.#unreachable.has(tab)) this.#make(tab, 0);
    for (const pair of this.#pairs.values()) pair.leftAt = here.has(pair.tab) ? undefined : (pair.leftAt ?? Date.now());
    for (const tab of this.#unreachable) if (!here.has(tab)) this.#unreachable.delete(tab);
    for (const [event, payload] of this.#early.splice(0)) this.#heard(event, payload);
    this.emit("change");
  }

  #make(tab: string, tries: number): Pair {
    const peer = new Peer(
      this.tab < tab,
      this.config,
      (kind, data) => this.#send(pair, kind, data),
      { change: () => this.emit("change"), message: (text) => this.emit("message", tab, text) },
    );
    const pair: Pair = { peer, tab, call: randomId(), remote: undefined, heardSeq: 0, seq: 0, work: Promise.resolve(), leftAt: undefined, madeAt: Date.now(), tries };
    this.#pairs.set(tab, pair);
    // The polite side never sends the first offer: `ready` requests one from the other side, also if that side still
    // has an older session of the pair.
    if (peer.polite) this.#send(pair, "ready", {});
    peer.setTracks(this.#tracks);
    this.emit("change");
    return pair;
  }

  #drop(tab: string): void {
    this.#pairs.get(tab)?.peer.close();
    this.#pairs.delete(tab);
    this.#out = this.#out.filter(([kind, signal]) => signal.to !== tab || kind === "bye");
    this.emit("change");
  }

  #heard(event: string, payload: unknown): void {
    if (!["ready", "offer", "answer", "ice-candidate", "bye"].includes(event) || !this.#joined) return;
    const signal = signalOf(payload);
    // Ignores signals for other tabs.
    if (!signal || signal.to !== this.tab || signal.from === this.tab) return;
    // An offer may overtake the presence of its tab: it waits for the roster. Signals of a tab that never appears are
    // evicted by newer ones.
    if (!this.presence.tabs().some((tab) => tab.tab === signal.from)) {
      this.#early.push([event, payload]);
      if (this.#early.length > EARLY_MAX) this.#early.shift();
      return;
    }
    let pair = this.#pairs.get(signal.from);
    if (event === "bye") return void (pair && (!pair.remote || pair.remote === signal.call) && this.#drop(signal.from));
    // The signal belongs to an earlier session.
    if (pair && signal.re && signal.re !== pair.call) return;
    let tries = 0;
    if (pair?.remote && pair.remote !== signal.call) {
      // The other side started a new session; only its first signal can start one here.
      if (event !== "offer" && event !== "ready") return;
      // A pair that never connected keeps its count, so that two sides do not restart each other without an end.
      if (!pair.peer.heardAt) tries = pair.tries;
      this.#drop(signal.from);
      pair = undefined;
    }
    this.#unreachable.delete(signal.from);
    pair ??= this.#make(signal.from, tries);
    pair.remote ??= signal.call;
    // A resume may replay a signal.
    if (signal.seq <= pair.heardSeq) return;
    pair.heardSeq = signal.seq;
    if (event !== "ready") this.#take(pair, signal);
  }

  #take(pair: Pair, signal: Signal): void {
    pair.work = pair.work
      .then(() => (signal.description ? pair.peer.description(signal.description) : pair.peer.candidate(signal.candidate ?? null)))
      .catch((error: Error) => {
        if (this.#pairs.get(pair.tab) !== pair) return;
        console.warn(`call with ${pair.tab}: ${error.message}; beginning anew`);
        this.#again(pair);
      });
  }

  #send(pair: Pair, kind: SignalKind, data: Pick<Signal, "description" | "candidate">): void {
    pair.seq += 1;
    const signal: Signal = { from: this.tab, to: pair.tab, call: pair.call, ...(pair.remote ? { re: pair.remote } : {}), seq: pair.seq, ...data };
    if (this.#out.length < OUT_MAX) this.#out.push([kind, signal]);
    void this.#flush();
  }

  // In order, one at a time; a signal that is not accepted is sent again when the room is live.
  async #flush(): Promise<void> {
    if (this.#sending || this.#closed) return;
    this.#sending = true;
    for (let next = this.#out[0]; next && this.room.joined; next = this.#out[0]) {
      const sent = await this.room.send(next[0], next[1]);
      if (sent) {
        if (this.#out[0] === next) this.#out.shift();
      } else await new Promise((resolve) => setTimeout(resolve, SEND_AGAIN_MS));
    }
    this.#sending = false;
  }

  #look(): void {
    const now = Date.now();
    for (const pair of this.#pairs.values()) {
      const silent = now - pair.peer.heardAt > SILENT_MS;
      if (pair.leftAt !== undefined && now - pair.leftAt > LEAVE_MS && silent) this.#drop(pair.tab);
      else if (pair.peer.pc.connectionState !== "connected" && !pair.peer.heardAt && now - pair.madeAt > this.answerMs && this.room.joined) this.#again(pair);
    }
  }

  // After several tries, reports the tab as unreachable; a signal from it starts a new session.
  #again(pair: Pair): void {
    this.#drop(pair.tab);
    if (pair.tries + 1 < TRIES_MAX) return void this.#make(pair.tab, pair.tries + 1);
    this.#unreachable.add(pair.tab);
    this.emit("problem", `${this.presence.tabs().find((tab) => tab.tab === pair.tab)?.name ?? "Somebody"} does not answer.`);
    this.emit("change");
  }
}

/** Returns a valid signal, or undefined: any member of the room can broadcast any JSON. */
export function signalOf(payload: unknown): Signal | undefined {
  const { from, to, call, re, seq, description, candidate } = (payload ?? {}) as Record<string, unknown>;
  if (![from, to, call].every((member) => typeof member === "string" && member.length <= 64)) return undefined;
  if (typeof seq !== "number" || !Number.isSafeInteger(seq) || (re !== undefined && typeof re !== "string")) return undefined;
  const signal: Signal = { from: from as string, to: to as string, call: call as string, seq, ...(re ? { re } : {}) };
  if (description !== undefined) {
    const { type, sdp } = (description ?? {}) as Record<string, unknown>;
    if ((type !== "offer" && type !== "answer") || typeof sdp !== "string" || sdp.length > 200_000) return undefined;
    return { ...signal, description: { type, sdp } };
  }
  if (candidate !== undefined && candidate !== null && typeof candidate !== "object") return undefined;
  return { ...signal, candidate: (candidate as RTCIceCandidateInit | null | undefined) ?? null };
}
