// `make web` itself: ports that are taken, an end with pages open, a second start on the same data, two machines, and a
// daemon that is killed.
import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { existsSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { createServer, type AddressInfo, type Server } from "node:net";
import { join } from "node:path";
import { expect, test, type Locator, type Page } from "@playwright/test";
import WebSocket from "ws";
import { here } from "../../server/daemon.mjs";
import { dataFolder } from "../unit/folder.ts";
import { freePort } from "../unit/port.ts";
import { isLive, poll } from "./harness/stage.ts";
import { has } from "./harness/wait.ts";

class Run {
  output = "";
  readonly child: ChildProcess;
  readonly ended: Promise<number | null>;

  constructor(args: string[]) {
    // In a process group of its own, as a shell starts it.
    this.child = spawn(process.execPath, [join(here, "run.mjs"), ...args], { detached: true });
    for (const stream of [this.child.stdout, this.child.stderr]) stream?.on("data", (bytes) => (this.output += bytes));
    this.ended = once(this.child, "exit").then(([code]) => code as number | null);
  }

  /** Ctrl-C as a terminal does it: a signal for every process of the group. */
  async interrupt(): Promise<number | null> {
    process.kill(-this.child.pid!, "SIGINT");
    const late = setTimeout(() => this.child.kill("SIGKILL"), 60_000);
    const code = await this.ended;
    clearTimeout(late);
    return code;
  }

  said(text: string): Promise<void> {
    return poll(() => this.output).toContain(text);
  }
}

async function taken(): Promise<[Server, number]> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return [server, (server.address() as AddressInfo).port];
}

let dataDir = "";
const postgresRuns = (): boolean => existsSync(join(dataDir, "postgres", "postmaster.pid"));

/** The folder of the tests that need no empty one: making the database takes longest of a start. */
let kept = "";
const emptyFolder = (): string => (dataDir = dataFolder());
const folderWithDatabase = (): string => (dataDir = kept ||= dataFolder());

const remove = (folder: string): void => rmSync(folder, { recursive: true, force: true });
test.afterEach(() => {
  if (dataDir !== kept) remove(dataDir);
});
test.afterAll(() => {
  if (kept) remove(kept);
});

test("a port that is taken, and flags that are wrong, are named, and nothing is started", async () => {
  emptyFolder();
  const [server, port] = await taken();
  const free = await freePort();
  const cases = [
    { args: ["--listen", `127.0.0.1:${port}`, "--daemon-port", `${free}`], says: `make web LISTEN=127.0.0.1:${port + 1}` },
    { args: ["--listen", `127.0.0.1:${free}`, "--daemon-port", `${port}`], says: `--daemon-port ${port + 1}` },
    { args: ["--listen", "127.0.0.1:99999"], says: "--listen takes ADDRESS:PORT" },
    { args: ["--listen", `127.0.0.1:${free}`, "--daemon-port", "x"], says: "--daemon-port takes a port" },
    { args: ["--lisen", "127.0.0.1:1"], says: "--lisen" },
  ];
  for (const { args, says } of cases) {
    const run = new Run([...args, "--data-dir", dataDir]);
    expect(await run.ended).toBe(1);
    expect(run.output).toContain(says);
    expect(run.output).not.toMatch(/^ +at /m);
  }
  expect(readdirSync(dataDir)).toEqual([]);
  server.close();
});

test("Ctrl-C ends it at once with a page open, and it starts again on the same data", async () => {
  folderWithDatabase();
  const [port, daemonPort] = [await freePort(), await freePort()];
  for (let i = 0; i < 2; i++) {
    const run = new Run(["--listen", `127.0.0.1:${port}`, "--daemon-port", `${daemonPort}`, "--data-dir", dataDir]);
    await run.said("Ctrl-C ends everything");
    const { anonKey } = (await (await fetch(`http://127.0.0.1:${port}/config`)).json()) as { anonKey: string };
    const socket = new WebSocket(`ws://127.0.0.1:${port}/realtime/v1/websocket?apikey=${anonKey}&vsn=2.0.0`);
    socket.on("error", () => undefined);
    await once(socket, "open");
    const closed = once(socket, "close");
    expect(await run.interrupt()).toBe(0);
    await closed;
    await expect(fetch(`http://127.0.0.1:${daemonPort}/health`)).rejects.toThrow();
    expect(postgresRuns()).toBe(false);
  }
});

test("Ctrl-C during the start leaves nothing running", async () => {
  emptyFolder();
  const run = new Run(["--listen", `127.0.0.1:${await freePort()}`, "--daemon-port", `${await freePort()}`, "--data-dir", dataDir]);
  await poll(postgresRuns).toBe(true);
  expect(await run.interrupt()).toBe(0);
  expect(postgresRuns()).toBe(false);
  expect(run.output).not.toMatch(/^ +at /m);
});

test("a daemon that outlived its make web is named", async () => {
  folderWithDatabase();
  const args = ["--listen", `127.0.0.1:${await freePort()}`, "--daemon-port", `${await freePort()}`, "--data-dir", dataDir];
  const first = new Run(args);
  await first.said("Ctrl-C ends everything");
  const daemon = Number(readFileSync(join(dataDir, "lock"), "utf8"));
  first.child.kill("SIGKILL");
  await first.ended;
  const second = new Run(args);
  expect(await second.ended).toBe(1);
  expect(second.output).toContain(`kill ${daemon}`);
  process.kill(daemon, "SIGTERM");
  await poll(postgresRuns).toBe(false);
});

test("two people on two machines sign in by the invite code, chat and draw, and a killed daemon comes back", async ({ browser }) => {
  folderWithDatabase();
  const [port, daemonPort] = [await freePort(), await freePort()];
  const run = new Run(["--listen", `0.0.0.0:${port}`, "--daemon-port", `${daemonPort}`, "--data-dir", dataDir]);
  try {
    await run.said("Ctrl-C ends everything");
    const code = /Invite code: (\S+)/.exec(run.output)?.[1] ?? "";
    const pages: Page[] = [];
    for (const person of ["Ana", "Ben"]) {
      const page = await (await browser.newContext()).newPage();
      await page.goto(`http://${person.toLowerCase()}.test:${port}/chat/?reconnect=200&heartbeat=1000`);
      expect(await page.evaluate(() => isSecureContext)).toBe(false);
      await page.getByLabel("Invite code").fill("wrong");
      await page.getByRole("button", { name: person, exact: true }).click();
      await expect(page.getByRole("alert")).toContainText("not the one that the server printed");
      await page.getByLabel("Invite code").fill(code);
      await page.getByRole("button", { name: person, exact: true }).click();
      await isLive(page);
      pages.push(page);
    }
    const [ana, ben] = pages as [Page, Page];
    const say = async (page: Page, text: string): Promise<void> => {
      await page.getByLabel("Message", { exact: true }).fill(text);
      await page.keyboard.press("Enter");
    };
    const bodies = (page: Page): Locator => page.locator(".message[data-state=stored] .body");
    await say(ana, "hello from my machine");
    await expect(bodies(ben)).toHaveText(["hello from my machine"]);
    // The daemon is a child of `make web`, which starts it again.
    process.kill(Number(readFileSync(join(dataDir, "lock"), "utf8")), "SIGKILL");
    await run.said("starting it again");
    await say(ben, "I am still here");
    for (const page of pages) await expect(bodies(page)).toHaveText(["hello from my machine", "I am still here"]);
    for (const page of pages) await isLive(page);
    for (const page of pages) await page.goto(page.url().replace("/chat/", "/board/"));
    for (const page of pages) await isLive(page);
    const sheet = (await ana.locator(".sheet").boundingBox())!;
    await ana.mouse.move(sheet.x + sheet.width / 2, sheet.y + sheet.height / 2);
    await ana.mouse.down();
    await ana.mouse.move(sheet.x + sheet.width / 2 + 60, sheet.y + sheet.height / 2 + 40);
    await ana.mouse.up();
    for (const page of pages) await has(page, "data-count", "1");
    for (const page of pages) await page.context().close();
  } finally {
    await run.interrupt();
  }
});
