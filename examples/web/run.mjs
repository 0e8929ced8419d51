// @ts-check
// `make web`: runs the daemon, the migrations, the server, and a program that bids in the agent console.
//
//   node run.mjs [--listen 127.0.0.1:8080] [--daemon-port 7710] [--data-dir .convoke-web]
import { createServer } from "node:net";
import { networkInterfaces } from "node:os";
import { resolve, join } from "node:path";
import { existsSync, readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { Daemon, here } from "./server/daemon.mjs";
import { databaseUrl, makePool, migrate, seed } from "./server/database.mjs";
import { People, inviteCode } from "./server/people.mjs";
import { startServer } from "./server/server.mjs";
import { startBidder } from "./server/bidder.mjs";
import { sign } from "./server/tokens.mjs";

const options = /** @type {const} */ ({
  listen: { type: "string", default: "127.0.0.1:8080" },
  "daemon-port": { type: "string", default: "7710" },
  "data-dir": { type: "string", default: join(here, "../../.convoke-web") },
});
const values = flags();
const at = values.listen.lastIndexOf(":");
const [host, port] = [values.listen.slice(0, at).replace(/^\[|\]$/g, ""), Number(values.listen.slice(at + 1))];
if (at < 1 || !isPort(port)) fail(`--listen takes ADDRESS:PORT, like 0.0.0.0:8080, not ${values.listen}`);
const daemonPort = Number(values["daemon-port"]);
if (!isPort(daemonPort)) fail(`--daemon-port takes a port, like 7710, not ${values["daemon-port"]}`);
const dist = join(here, "dist");
if (!existsSync(join(dist, "index.html"))) fail("the pages are not built: npm run build (make web does it)");
// Before the daemon starts, so that a port in use leaves nothing running. Its port first: another "make web" holds both,
// and this advice has all that a second one needs.
const dataDir = resolve(values["data-dir"]);
await free("127.0.0.1", daemonPort, `${holder()}; a second one: make web LISTEN=127.0.0.1:8090 ARGS="--daemon-port ${daemonPort + 1} --data-dir ../../.convoke-web-2"`);
await free(host, port, `choose another port: make web LISTEN=${host}:${port + 1}`);

const daemon = new Daemon({ dataDir, port: daemonPort });
/** Ends of what runs, the last that was started first. @type {(() => unknown)[]} */
const ends = [];
let stopping = false;
let starting = daemon.start();
for (const signal of /** @type {const} */ (["SIGINT", "SIGTERM", "SIGHUP"])) process.on(signal, stop);
console.error("web: starting the daemon and its PostgreSQL");
await starting.catch(abort);
const { server, invite } = await start().catch(abort);
const bidder = startBidder(daemon.url.origin, sign({ role: "authenticated", org: "demo", agent_id: "robot" }, daemon.secret(), 365 * 24 * 3600));
ends.unshift(bidder.stop);

// A daemon that dies is restarted; the pages reconnect by themselves.
daemon.onExit = async (code) => {
  if (stopping) return;
  console.error(`web: the daemon ended (${code}), starting it again`);
  await new Promise((done) => setTimeout(done, 1000));
  if (stopping) return;
  starting = daemon.start();
  await starting.catch(abort);
};

console.log(`\nThe pages: ${addresses(host, server.port).join("  ")}`);
if (invite) console.log(`Invite code: ${invite}   (people type it when they sign in)`);
console.log("Open it in two browsers, choose two people, and chat or draw. Ctrl-C ends everything.\n");

/** Stops everything at any time; a second signal does not wait for it. */
async function stop() {
  if (stopping) {
    void daemon.kill9();
    process.exit(1);
  }
  stopping = true;
  // A daemon that is stopped before it is ready leaves its PostgreSQL running.
  await starting.catch(() => undefined);
  for (const end of ends) await end();
  await daemon.stop();
  process.exit(0);
}

async function start() {
  const pool = makePool(databaseUrl(daemon.dataDir));
  ends.unshift(() => pool.end());
  await migrate(pool, join(here, "migrations"));
  await seed(pool, join(here, "seeds"));
  const loopback = host === "127.0.0.1" || host === "::1" || host === "localhost";
  const invite = loopback ? undefined : (process.env.INVITE ?? inviteCode());
  const people = new People(daemon.secret(), pool, invite);
  const server = await startServer({ pool, secret: daemon.secret(), people, daemon: daemon.url, dist, host, port });
  ends.unshift(server.close);
  return { server, invite };
}

function flags() {
  try {
    return parseArgs({ options }).values;
  } catch (error) {
    return fail(/** @type {Error} */ (error).message);
  }
}

/** @param {number} port */
function isPort(port) {
  return Number.isInteger(port) && port >= 0 && port < 65536;
}

/** Fails if the address cannot be bound. @param {string} host @param {number} port @param {string} advice */
async function free(host, port, advice) {
  const probe = createServer();
  await new Promise((done, failed) => probe.once("error", failed).listen(port, host, () => done(undefined)))
    .catch((error) => fail(`cannot listen on ${host}:${port}: ${error.code === "EADDRINUSE" ? `the port is taken; ${advice}` : error.message}`));
  await new Promise((done) => probe.close(done));
}

/** Returns what may hold the daemon's port: its lock file has the process of the data folder's daemon. */
function holder() {
  const lock = join(dataDir, "lock");
  const id = existsSync(lock) ? Number(readFileSync(lock, "utf8")) : NaN;
  return isAlive(id) ? `another "make web" may run, or the daemon of one that was killed: then stop it with kill ${id}` : 'another "make web" may run';
}

/** @param {number} id */
function isAlive(id) {
  try {
    return id > 0 && process.kill(id, 0);
  } catch {
    return false;
  }
}

/** Stops the daemon and fails. @param {Error} error @returns {Promise<never>} */
async function abort(error) {
  // Parts that are not complete yet fail when `stop` ends the others.
  if (stopping) return new Promise(() => undefined);
  await daemon.stop();
  return fail(error.message);
}

/** @param {string} host @param {number} port */
function addresses(host, port) {
  if (host !== "0.0.0.0" && host !== "::") return [`http://${host.includes(":") ? `[${host}]` : host}:${port}/`];
  const all = Object.values(networkInterfaces()).flat().filter((face) => face && face.family === "IPv4");
  return all.map((face) => `http://${face?.address}:${port}/`);
}

/** @param {string} message @returns {never} */
function fail(message) {
  console.error(`web: ${message}`);
  process.exit(1);
}
