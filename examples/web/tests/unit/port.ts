import { createServer } from "node:net";

/** Below the ports that Linux (32768) and macOS (49152) give to outgoing connections by default. */
const [FIRST, COUNT] = [20_000, 12_000];

/**
 * Returns a port that is free now and stays free while its daemon is down: an outgoing connection never gets it. A port
 * of `listen(0)` could be taken meanwhile, even by a client that connects to it (a TCP self-connection).
 */
export async function freePort(): Promise<number> {
  for (;;) {
    const port = FIRST + Math.floor(Math.random() * COUNT);
    if (await isFree(port)) return port;
  }
}

async function isFree(port: number): Promise<boolean> {
  const server = createServer();
  const listens = await new Promise<boolean>((resolve) => server.once("error", () => resolve(false)).listen(port, "127.0.0.1", () => resolve(true)));
  if (listens) await new Promise((resolve) => server.close(resolve));
  return listens;
}
