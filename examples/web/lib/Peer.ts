// One peer connection with perfect negotiation: both sides may offer at any time, and the polite side rolls back. The
// first offer of a pair always comes from the impolite side.

export type SignalKind = "ready" | "offer" | "answer" | "ice-candidate" | "bye";

/** Sends a signal through the channel; `WebRTCSignaling` adds the addressee and the sequence number. */
export type SendSignal = (kind: SignalKind, data: { description?: RTCSessionDescriptionInit; candidate?: RTCIceCandidateInit | null }) => void;

export interface PeerEvents {
  change: () => void;
  message: (text: string) => void;
}

/** Time in the state `disconnected` after which the impolite side restarts ICE; in `failed` it does so at once. */
const RESTART_AFTER_MS = 5000;
/** Time after which the polite side does it: only if the other one does not see the fault. */
const POLITE_RESTART_AFTER_MS = 20_000;
const PING_EVERY_MS = 1000;
const WAITING_MAX = 50;

export class Peer {
  readonly pc: RTCPeerConnection;
  /** Remote streams by id. */
  readonly streams = new Map<string, MediaStream>();
  /** Time of the last message over the data channel, by our clock; 0: none. */
  heardAt = 0;
  #data: RTCDataChannel | undefined;
  readonly #waiting: string[] = [];
  #makingOffer = false;
  #ignoreOffer = false;
  #answerPending = false;
  #candidates: (RTCIceCandidateInit | null)[] = [];
  #restart: ReturnType<typeof setTimeout> | undefined;
  readonly #ping: ReturnType<typeof setInterval>;

  /** @param polite rolls back when both offer at once; exactly one side of a pair is polite */
  constructor(
    readonly polite: boolean,
    config: RTCConfiguration,
    readonly send: SendSignal,
    readonly events: PeerEvents,
  ) {
    // One transport for all media: a third of the candidates, each of which is a message.
    this.pc = new RTCPeerConnection({ bundlePolicy: "max-bundle", ...config });
    const { pc } = this;
    if (!polite) this.#data = this.#channel();
    pc.onnegotiationneeded = () => void this.#offer();
    pc.onicecandidate = ({ candidate }) => send("ice-candidate", { candidate: candidate?.toJSON() ?? null });
    pc.ontrack = ({ track, streams }) => this.#track(track, streams);
    pc.onconnectionstatechange = () => this.#state();
    pc.onsignalingstatechange = () => events.change();
    this.#ping = setInterval(() => this.#say(""), PING_EVERY_MS);
  }

  /** Sends our tracks: adds new ones, removes the others. */
  setTracks(wanted: [MediaStreamTrack, MediaStream][]): void {
    const senders = this.pc.getSenders().filter((sender) => sender.track);
    for (const sender of senders) if (!wanted.some(([track]) => track === sender.track)) this.pc.removeTrack(sender);
    for (const [track, stream] of wanted) if (!senders.some((sender) => sender.track === track)) this.pc.addTrack(track, stream);
  }

  /** Sends a text over the data channel, not through the server. Returns false if the pair is not connected. */
  say(text: string): boolean {
    if (text === "" || this.#say(text)) return text !== "";
    if (this.pc.connectionState !== "connected" || this.#data?.readyState === "closed" || this.#waiting.length >= WAITING_MAX) return false;
    this.#waiting.push(text);
    return true;
  }

  /** Applies an offer or answer of the other side. */
  async description(description: RTCSessionDescriptionInit): Promise<void> {
    const { pc } = this;
    const ready = !this.#makingOffer && (pc.signalingState === "stable" || this.#answerPending);
    const collision = description.type === "offer" && !ready;
    this.#ignoreOffer = !this.polite && collision;
    if (this.#ignoreOffer) return;
    // An answer to an offer that we rolled back is stale.
    if (description.type === "answer" && pc.signalingState !== "have-local-offer") return;
    this.#answerPending = description.type === "answer";
    try {
      await pc.setRemoteDescription(description); // Rolls our own offer back when there is one.
    } finally {
      this.#answerPending = false;
    }
    if (description.type === "offer" && description.sdp?.includes("m=application")) this.#data ??= this.#channel();
    for (const candidate of this.#candidates.splice(0)) await this.#add(candidate);
    if (description.type !== "offer") return;
    await pc.setLocalDescription();
    if (pc.localDescription) this.send("answer", { description: pc.localDescription.toJSON() });
  }

  /** Applies a candidate; a candidate that arrives before the description waits for it. */
  async candidate(candidate: RTCIceCandidateInit | null): Promise<void> {
    if (this.pc.remoteDescription && !this.#ignoreOffer) await this.#add(candidate);
    else if (!this.#ignoreOffer && this.#candidates.length < 200) this.#candidates.push(candidate);
  }

  close(): void {
    clearTimeout(this.#restart);
    clearInterval(this.#ping);
    this.pc.onnegotiationneeded = this.pc.onicecandidate = this.pc.ontrack = this.pc.onconnectionstatechange = this.pc.onsignalingstatechange = null;
    this.pc.close();
  }

  // Negotiated on both sides. The impolite side creates it at once, so a pair without a camera connects, too. The polite
  // side creates it when it is offered: a browser closes the channel of an offer that is rolled back, and only the
  // polite side rolls back.
  #channel(): RTCDataChannel {
    const channel = this.pc.createDataChannel("chat", { negotiated: true, id: 0 });
    channel.onmessage = ({ data }) => this.#hear(data);
    // Media may flow before the channel is open: texts wait meanwhile.
    channel.onopen = () => this.#waiting.splice(0).forEach((text) => this.#say(text));
    return channel;
  }

  async #offer(): Promise<void> {
    // The polite side waits for the first offer. Its own would be rolled back whenever both sides begin at once, and
    // Chromium, after a rollback during the gathering of its first candidates, sends none for the answer: the pair
    // never connects.
    if (this.polite && !this.pc.remoteDescription) return;
    try {
      this.#makingOffer = true;
      await this.pc.setLocalDescription();
      if (this.pc.localDescription) this.send("offer", { description: this.pc.localDescription.toJSON() });
    } catch (error) {
      console.warn("an offer could not be made", error);
    } finally {
      this.#makingOffer = false;
    }
  }

  async #add(candidate: RTCIceCandidateInit | null): Promise<void> {
    try {
      await this.pc.addIceCandidate(candidate ?? undefined);
    } catch (error) {
      // A candidate of an ignored or replaced offer is stale; the connection has others.
      if (!this.#ignoreOffer) console.warn("a candidate could not be added", error);
    }
  }

  #track(track: MediaStreamTrack, streams: readonly MediaStream[]): void {
    for (const stream of streams) {
      this.streams.set(stream.id, stream);
      stream.onremovetrack = () => {
        if (!stream.getTracks().length) this.streams.delete(stream.id);
        this.events.change();
      };
    }
    track.onunmute = track.onmute = () => this.events.change();
    this.events.change();
  }

  #state(): void {
    clearTimeout(this.#restart);
    const { connectionState } = this.pc;
    // Both sides see a fault at about the same time. Two restarts would collide, and each would end the attempt of the other.
    const wait = this.polite ? POLITE_RESTART_AFTER_MS : connectionState === "failed" ? 0 : RESTART_AFTER_MS;
    if (connectionState === "failed" || connectionState === "disconnected") this.#restart = setTimeout(() => this.pc.restartIce(), wait);
    this.events.change();
  }

  #hear(data: unknown): void {
    this.heardAt = Date.now();
    if (typeof data === "string" && data !== "") this.events.message(data.slice(0, 2000));
  }

  #say(text: string): boolean {
    if (this.#data?.readyState !== "open") return false;
    this.#data.send(text);
    return true;
  }
}
