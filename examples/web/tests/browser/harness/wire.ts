// A TCP proxy in front of the server, one for each person: it disconnects, freezes and delays real sockets.
// `context.setOffline(true)` does not close websockets.
import { createServer, connect, type Server, type Socket } from "node:net";

export class Wire {
  readonly #pairs = new Set<[Socket, Socket]>();
  readonly #swallowed = new Set<[Socket, Socket]>();
  readonly #server: Server;
  #frozen = false;
  #refusing = false;
  #swallowing = false;
  #delayMs = 0;
  port = 0;

  /** `from`: the address of this person, as the target sees it. */
  constructor(
    readonly target: number,
    readonly from = "127.0.0.1",
  ) {
    this.#server = createServer((socket) => this.#accept(socket));
  }

  async open(): Promise<this> {
    await new Promise<void>((resolve) => this.#server.listen(0, "127.0.0.1", resolve));
    this.port = (this.#server.address() as { port: number }).port;
    return this;
  }

  /** Resets every connection; new ones work. */
  cut(): void {
    for (const [a, b] of this.#pairs) {
      a.resetAndDestroy();
      b.resetAndDestroy();
    }
    this.#pairs.clear();
  }

  /** Cuts, and refuses new connections until `restore`. */
  down(): void {
    this.#refusing = true;
    this.cut();
  }

  /** Accepts connections and forwards nothing, like a network that lost its route. */
  freeze(): void {
    this.#frozen = true;
    for (const [a, b] of this.#pairs) {
      a.pause();
      b.pause();
    }
  }

  /** Accepts new connections that never forward anything, not even after `restore`. */
  swallow(): void {
    this.#swallowing = true;
  }

  /** Ends `down`, `freeze`, `swallow` and `delay`. Frozen connections continue. */
  restore(): void {
    this.#refusing = this.#frozen = this.#swallowing = false;
    this.#delayMs = 0;
    for (const [a, b] of this.#pairs) {
      a.resume();
      b.resume();
    }
  }

  delay(ms: number): void {
    this.#delayMs = ms;
  }

  async close(): Promise<void> {
    this.cut();
    for (const sockets of this.#swallowed) sockets.forEach((socket) => socket.destroy());
    await new Promise<void>((resolve) => this.#server.close(() => resolve()));
  }

  #accept(socket: Socket): void {
    socket.on("error", () => undefined);
    if (this.#refusing) return void socket.resetAndDestroy();
    const to = connect({ port: this.target, host: "127.0.0.1", localAddress: this.from });
    to.on("error", () => socket.destroy());
    if (this.#swallowing) {
      // `cut` and `restore` do not reach it; `close` ends it.
      const swallowed: [Socket, Socket] = [socket.pause(), to.pause()];
      this.#swallowed.add(swallowed);
      return;
    }
    const pair: [Socket, Socket] = [socket, to];
    this.#pairs.add(pair);
    const done = (): void => void this.#pairs.delete(pair);
    this.#pass(socket, to, done);
    this.#pass(to, socket, done);
    if (this.#frozen) {
      socket.pause();
      to.pause();
    }
  }

  #pass(from: Socket, to: Socket, done: () => void): void {
    from.setNoDelay(true);
    from.on("data", (bytes) => {
      const write = (): void => {
        if (!to.destroyed && !to.write(bytes)) {
          from.pause();
          to.once("drain", () => !this.#frozen && from.resume());
        }
      };
      if (this.#delayMs) setTimeout(write, this.#delayMs);
      else write();
    });
    from.on("end", () => to.end());
    from.on("close", () => {
      to.destroy();
      done();
    });
  }
}
