// The fixtures: a daemon with agents and its own PostgreSQL for each worker, one Chromium, a context for each person.
import { type Browser, type BrowserContext, type Locator, type Page, test as base, expect } from "@playwright/test";
import { rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { execFileSync } from "node:child_process";
import { Daemon, binary } from "../../../../examples/web/server/daemon.mjs";
import { databaseUrl, makePool } from "../../../../examples/web/server/database.mjs";
import { sign } from "../../../../examples/web/server/tokens.mjs";
import { dataFolder } from "../../../../examples/web/tests/unit/folder.ts";
import { freePort } from "../../../../examples/web/tests/unit/port.ts";
import { Model } from "./model.ts";
import * as axe from "../../../../examples/web/tests/browser/harness/axe.ts";
import type { Rules } from "../../../../examples/web/tests/browser/harness/axe.ts";
import { has, OFTEN } from "../../../../examples/web/tests/browser/harness/wait.ts";
import { Wire } from "../../../../examples/web/tests/browser/harness/wire.ts";

const here = fileURLToPath(new URL("..", import.meta.url));
const AGENTS = join(here, "agents");
const AXE = createRequire(import.meta.url).resolve("axe-core/axe.min.js");
const TICKETS = "create table if not exists public.tickets (id bigint generated always as identity primary key, subject text not null, body text not null default '')";

export type Role = "viewer" | "operator" | "admin";

export class Stage {
  readonly daemon: Daemon;
  readonly errors: string[] = [];
  readonly #contexts: BrowserContext[] = [];
  readonly #wires: Wire[] = [];
  pool!: ReturnType<typeof makePool>;

  #people = 0;

  private constructor(
    readonly browser: Browser,
    readonly dataDir: string,
    port: number,
    readonly model: Model,
    agents: string,
    readonly config: string,
  ) {
    this.daemon = new Daemon({ dataDir, port, agents, config });
  }

  static async open(browser: Browser): Promise<Stage> {
    const stage = await Stage.#open(browser, AGENTS);
    await stage.pool.query(TICKETS);
    // A wake finds a table that is created later only after a restart.
    await stage.crash();
    return stage;
  }

  /** A daemon without tables and tasks, and with these agents: their files by name. */
  static async with(browser: Browser, agents: Record<string, string>): Promise<Stage> {
    const folder = dataFolder();
    for (const [name, text] of Object.entries(agents)) writeFileSync(join(folder, name), text);
    return Stage.#open(browser, folder);
  }

  /** A daemon that sends viewers no data of tasks. */
  static async forOperators(browser: Browser): Promise<Stage> {
    return Stage.#open(browser, AGENTS, "operators.toml");
  }

  static async #open(browser: Browser, agents: string, config = "convoke.toml"): Promise<Stage> {
    const stage = new Stage(browser, dataFolder(), await freePort(), await Model.open(), agents, join(here, config));
    await stage.#start();
    stage.pool = makePool(databaseUrl(stage.dataDir));
    return stage;
  }

  async #start(): Promise<void> {
    // The daemon inherits the environment of this process, in which there may be another stage.
    process.env.MODEL_URL = this.model.url;
    await this.daemon.start();
  }

  /** A link of `convoke dashboard`, as a person gets it. */
  link(person: string, role: Role = "viewer", org = "demo"): string {
    const args = ["dashboard", "--data-dir", this.dataDir, "--config", this.config, "--org", org, "--sub", person, "--role", role];
    return execFileSync(binary(), args, { encoding: "utf8" }).trim();
  }

  /** A person's browser behind a wire of its own; pages of it are signed in. */
  async person(name: string, options: Parameters<Browser["newContext"]>[0] = {}, role: Role = "viewer", org = "demo"): Promise<{ page: Page; context: BrowserContext; wire: Wire; origin: string }> {
    // An address of its own: the daemon limits the sign-ins of one address to ten a minute.
    const wire = await new Wire(Number(this.daemon.url.port), `127.0.0.${2 + (this.#people++ % 250)}`).open();
    const context = await this.browser.newContext(options);
    this.#contexts.push(context);
    this.#wires.push(wire);
    const page = await context.newPage();
    page.on("pageerror", (error) => this.errors.push(`${name}: ${error.stack ?? error.message}`));
    page.on("console", (message) => {
      if (message.type() === "error" && /Content Security Policy|Trusted/.test(message.text())) this.errors.push(`${name}: ${message.text()}`);
    });
    const origin = `http://127.0.0.1:${wire.port}`;
    const link = new URL(this.link(name, role, org));
    await page.goto(`${origin}${link.pathname}?reconnect=200&heartbeat=1000${link.hash}`);
    await isLive(page);
    return { page, context, wire, origin };
  }

  /** As a user who may request tasks. */
  api<T = Record<string, unknown>>(path: string, body?: unknown): Promise<T> {
    return this.#ask<T>(path, { role: "authenticated", aud: "authenticated", org: "demo", sub: "shop" }, body);
  }

  /** As the service, which may command every task. */
  service<T = Record<string, unknown>>(path: string, body?: unknown): Promise<T> {
    return this.#ask<T>(path, { role: "service_role", org: "demo" }, body);
  }

  /** A task for which this many remote agents offer, each for another price; returns its id when it is completed. */
  async crowd(count: number): Promise<string> {
    const agents = Array.from({ length: count }, (_, at) => `peer-${String(at + 1).padStart(2, "0")}`);
    const as = <T>(agent: string, path: string, body: unknown, method = "POST"): Promise<T> => this.#ask<T>(path, { role: "authenticated", aud: "authenticated", org: "demo", agent_id: agent }, body, method);
    for (const agent of agents) await as(agent, `/v1/agents/${agent}/presence`, { capabilities: ["crowd.work"], lease: "60s" }, "PUT");
    // The round closes when all that were asked have offered, and the winner accepts, however slow this machine is.
    const policy = { bid_window: "60s", quiet_gap: "60s", confirm: "60s" };
    interface Why { rounds: { awards: { agent_id: string; assignment_id: string; epoch: number }[] }[] }
    interface Events { events: { type: string; body: { eligible?: string[] } }[] }
    let task = "";
    // An agent is present some time after its request: a round that asks too few is left, and another one begins.
    const asked = async (): Promise<number> => {
      if (task) await this.service(`/v1/tasks/${task}/cancel`, {});
      task = await this.request("crowd.work", { policy });
      const announced = async (): Promise<string[] | undefined> => (await this.api<Events>(`/v1/tasks/${task}/events`)).events.find(({ type }) => type === "announced")?.body.eligible;
      await poll(announced).toBeTruthy();
      return (await announced())?.length ?? 0;
    };
    await poll(asked).toBe(count);
    const why = (): Promise<Why> => this.api<Why>(`/v1/tasks/${task}/why`);
    for (const [at, agent] of agents.entries()) await as(agent, `/v1/tasks/${task}/offers`, { round: 1, cost: 100 + at * 40, eta_ms: 1000 + at * 50, confidence: 0.95 - at / 100 });
    await poll(async () => (await why()).rounds[0]?.awards.length).toBe(1);
    const award = (await why()).rounds[0]!.awards[0]!;
    const report = { task_id: task, epoch: award.epoch };
    await as(award.agent_id, `/v1/assignments/${award.assignment_id}/accept`, report);
    await as(award.agent_id, `/v1/assignments/${award.assignment_id}/result`, { ...report, result: "done" });
    await this.reaches(task, "completed");
    return task;
  }

  async #ask<T>(path: string, claims: Record<string, unknown>, body: unknown, method = "POST"): Promise<T> {
    const init = body === undefined ? {} : { method, body: JSON.stringify(body) };
    const answer = await fetch(new URL(path, this.daemon.url), { ...init, headers: { authorization: `Bearer ${sign(claims, this.daemon.secret(), 600)}` } });
    const text = await answer.text();
    if (!answer.ok) throw new Error(`${path}: ${answer.status} ${text}`);
    return (text ? JSON.parse(text) : null) as T;
  }

  async request(kind: string, more: object = {}): Promise<string> {
    const { task } = await this.api<{ task: { id: string } }>("/v1/tasks", { kind, requires: [kind], ...more });
    return task.id;
  }

  /** Waits until a task is in a state. */
  async reaches(id: string, state: string): Promise<void> {
    await poll(async () => (await this.api<{ state: string }>(`/v1/tasks/${id}`)).state).toBe(state);
  }

  /** Inserts a ticket, for which the clerk's file requests a task; returns the id of that task. */
  async ticket(subject: string): Promise<string> {
    await this.pool.query("insert into public.tickets (subject) values ($1)", [subject]);
    const found = "select id from convoke.tasks where input -> 'ticket' ->> 'subject' = $1";
    let id: string | undefined;
    await poll(async () => (id = (await this.pool.query<{ id: string }>(found, [subject])).rows[0]?.id)).toBeTruthy();
    return id ?? "";
  }

  /** Kills the daemon and starts it again on the same port. */
  async crash(while_: () => Promise<void> = async () => undefined): Promise<void> {
    await this.daemon.kill9();
    // It is started also if what was expected meanwhile did not happen: it stops its PostgreSQL at the end.
    await while_().finally(() => this.#start());
  }

  async leave(): Promise<void> {
    for (const context of this.#contexts.splice(0)) await context.close();
    for (const wire of this.#wires.splice(0)) await wire.close();
  }

  async close(): Promise<void> {
    await this.leave();
    await this.pool?.end();
    await this.daemon.stop();
    this.model.close();
    rmSync(this.dataDir, { recursive: true, force: true });
    if (this.daemon.agents !== AGENTS) rmSync(this.daemon.agents, { recursive: true, force: true });
  }
}

/** Like `expect.poll`. */
export const poll = <T>(read: () => T | Promise<T>): ReturnType<typeof expect.poll<T>> => expect.poll(read, OFTEN);

export const isLive = (page: Page): Promise<void> => has(page, "data-live", "live");

/** The findings of axe that are serious or critical. The context needs `bypassCSP`. */
export const findings = (page: Page, rules: Rules = "all"): Promise<string[]> => axe.findings(page, AXE, rules);

/** How much wider the page is than the screen. */
export const overflow = (page: Page): Promise<number> => page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);

/** Drags from one share of a chart's width to another. */
export async function drag(page: Page, chart: Locator, from: number, to: number): Promise<void> {
  // Scrolls there, and waits until the chart stands still.
  await chart.hover();
  const box = await chart.boundingBox();
  if (!box) throw new Error(`${chart} is not drawn`);
  const y = box.y + box.height / 2;
  await page.mouse.move(box.x + box.width * from, y);
  await page.mouse.down();
  await page.mouse.move(box.x + box.width * to, y, { steps: 4 });
  await expect(page.locator(".brush-range")).toBeVisible();
  await page.mouse.up();
}

/** One stage for all tests of a worker. */
export const test = base.extend<{ seats: Stage }, { stage: Stage }>({
  stage: [
    async ({ browser }, use) => {
      const stage = await Stage.open(browser);
      await use(stage);
      await stage.close();
    },
    { scope: "worker", timeout: 180_000 },
  ],
  seats: async ({ stage }, use, info) => {
    await use(stage);
    if (info.status !== info.expectedStatus) console.error(stage.daemon.log().slice(-4000));
    await stage.leave();
    expect(stage.errors.splice(0), "no page threw, and nothing broke the content security policy").toEqual([]);
  },
});

export { expect };
