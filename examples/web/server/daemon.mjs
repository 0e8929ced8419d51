// @ts-check
// The daemon as a child process: started, watched, killed (tests), started again.
import { spawn } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

export const here = fileURLToPath(new URL("..", import.meta.url));
const READY_WITHIN_MS = 60_000;

/** The daemon's executable: `CONVOKE_BIN`, else a build of this repository. */
export function binary() {
  const places = process.env.CONVOKE_BIN
    ? [process.env.CONVOKE_BIN]
    : [join(process.env.CARGO_TARGET_DIR ?? join(here, "../../target"), "debug/convoke"), join(here, "../../target/release/convoke")];
  const found = places.find((place) => existsSync(place));
  if (!found) throw new Error(`the daemon is not built: cargo build --locked, or set CONVOKE_BIN (looked for ${places.join(", ")})`);
  return found;
}

export class Daemon {
  /** @type {import("node:child_process").ChildProcess | undefined} */
  #child;
  #log = "";
  /** Called when the process ends without `stop` or `kill9`. @type {((code: number | null) => void) | undefined} */
  onExit;

  /** @param {{ dataDir: string, port: number, quiet?: boolean, agents?: string, config?: string }} options */
  constructor({ dataDir, port, quiet = true, agents = join(here, "agents"), config = join(here, "convoke.toml") }) {
    this.dataDir = dataDir;
    this.agents = agents;
    this.config = config;
    this.url = new URL(`http://127.0.0.1:${port}`);
    this.quiet = quiet;
  }

  /** Starts it and returns when it is ready. */
  async start() {
    const child = spawn(
      binary(),
      ["up", "--config", this.config, "--data-dir", this.dataDir, "--listen", this.url.host, "--agents", this.agents],
      // In a process group of its own: Ctrl-C in a terminal signals all of the group, and a daemon that gets this and then
      // the signal of `stop` ends at once and leaves its PostgreSQL running.
      { stdio: ["ignore", "pipe", "pipe"], detached: true, env: { ...process.env, CONVOKE_CONFIG: undefined, NO_COLOR: "1" } },
    );
    this.#child = child;
    const keep = (/** @type {Buffer} */ bytes) => {
      this.#log = (this.#log + bytes).slice(-20_000);
      if (!this.quiet) process.stderr.write(bytes);
    };
    child.stdout?.on("data", keep);
    child.stderr?.on("data", keep);
    child.once("exit", (code) => {
      if (this.#child !== child) return;
      this.#child = undefined;
      this.onExit?.(code);
    });
    await this.#ready(child);
  }

  /** @param {import("node:child_process").ChildProcess} child */
  async #ready(child) {
    const until = Date.now() + READY_WITHIN_MS;
    while (Date.now() < until) {
      if (child.exitCode !== null || child.signalCode !== null) throw new Error(`the daemon ended with ${child.exitCode ?? child.signalCode}:\n${this.#log}`);
      const ok = await fetch(new URL("/health/ready", this.url)).then((answer) => answer.ok, () => false);
      if (ok) return;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    throw new Error(`the daemon was not ready within ${READY_WITHIN_MS} ms:\n${this.#log}`);
  }

  /** The secret that signs tokens. */
  secret() {
    return readFileSync(join(this.dataDir, "jwt.secret"), "utf8").trim();
  }

  /** The end of its process log. */
  log() {
    return this.#log;
  }

  /** Kills it, like a crash; its PostgreSQL keeps running, and the next start adopts it. */
  async kill9() {
    await this.#end("SIGKILL");
  }

  /** Stops it gracefully, together with its PostgreSQL. */
  async stop() {
    await this.#end("SIGTERM");
  }

  /** @param {NodeJS.Signals} signal */
  async #end(signal) {
    const child = this.#child;
    if (!child) return;
    this.#child = undefined;
    const gone = new Promise((resolve) => child.once("exit", resolve));
    child.kill(signal);
    await gone;
  }
}
