// The fixtures of a test file: a daemon with its own PostgreSQL, the server, one Chromium with a context for each person.
import { test as base, expect, type Browser, type BrowserContext, type Page } from "@playwright/test";
import type pg from "pg";
import type { Daemon } from "../../../server/daemon.mjs";
import { sign } from "../../../server/tokens.mjs";
import { Backend, type Server } from "../../unit/backend.ts";
import { has, html, OFTEN } from "./wait.ts";
import { Wire } from "./wire.ts";

/** Lengths of the long runs: 1 in `make test`, more with `WEB_TEST_SIZE=10`. */
export const SIZE = Math.max(1, Number(process.env.WEB_TEST_SIZE ?? 1) || 1);

/** One person's browser: a context of its own behind a wire of its own. */
export class Seat {
  readonly #pages: Page[] = [];
  constructor(
    readonly context: BrowserContext,
    readonly wire: Wire,
    readonly person: string,
    readonly errors: string[],
  ) {}

  get origin(): string {
    return `http://127.0.0.1:${this.wire.port}`;
  }

  /** Opens a page (another tab of the same person when one is open), live. */
  async open(path: string, { live = true }: { live?: boolean } = {}): Promise<Page> {
    const page = await this.context.newPage();
    page.on("pageerror", (error) => this.errors.push(`${this.person}: ${error.stack ?? error.message}`));
    page.on("console", (message) => {
      if (message.type() === "error" && /Content Security Policy|a listener of/.test(message.text())) this.errors.push(`${this.person}: ${message.text()}`);
    });
    const url = new URL(path, this.origin);
    // A heartbeat without an answer until the next one ends the connection: a short interval would end it on a slow machine.
    if (!url.searchParams.has("heartbeat")) url.searchParams.set("heartbeat", "10000");
    url.searchParams.set("reconnect", "200");
    await page.goto(url.href);
    if (live) await isLive(page);
    this.#pages.push(page);
    return page;
  }
}

/** Like `expect.poll`. */
export const poll = <T>(read: () => T | Promise<T>): ReturnType<typeof expect.poll<T>> => expect.poll(read, OFTEN);

let nth = 0;
/** Returns a name that no other test has, for a topic or a row: the tests of a worker share a database. */
export const fresh = (name: string): string => `${name}-${Date.now()}-${++nth}`;

export const isLive = (page: Page): Promise<void> => has(page, "data-live", "live");
/** Returns when every write of the page has an answer: the tables are then final. */
export const isStored = (page: Page): Promise<void> => has(page, "data-sending", "0");
/** Returns when what the page knows is on the screen: frames that were requested before are drawn first. */
export const isDrawn = (page: Page): Promise<unknown> => page.evaluate(() => new Promise((resolve) => requestAnimationFrame(resolve)));

/**
 * Returns when `pages` show what `late` shows, a page that joined after the last write and read the tables alone. A count
 * or a hash of the pages alone is no proof: it can be the expected one on the way to the final state.
 */
export async function agree(late: Page, ...pages: Page[]): Promise<void> {
  await isLive(late);
  await isDrawn(late);
  const hash = (await html(late).getAttribute("data-hash")) ?? "";
  for (const page of pages) await has(page, "data-hash", hash);
}

export class Stage {
  readonly errors: string[] = [];
  readonly #seats: Seat[] = [];

  private constructor(
    readonly browser: Browser,
    readonly backend: Backend,
    readonly server: Server,
  ) {}

  static async open(browser: Browser): Promise<Stage> {
    const backend = await Backend.open();
    return new Stage(browser, backend, await backend.serve());
  }

  get daemon(): Daemon {
    return this.backend.daemon;
  }

  /** A person's browser, signed in. */
  async seat(person: string, options: Parameters<Browser["newContext"]>[0] = {}, server = this.server): Promise<Seat> {
    const wire = await new Wire(server.port).open();
    const context = await this.browser.newContext(options);
    const seat = new Seat(context, wire, person, this.errors);
    this.#seats.push(seat);
    const answer = await context.request.post(`${seat.origin}/session`, { data: { person } });
    expect(answer.status()).toBe(200);
    return seat;
  }

  /** Creates a topic with its members. */
  async topic(name: string, members: Record<string, "reader" | "writer"> = { ana: "writer", ben: "writer", cleo: "writer" }): Promise<void> {
    for (const [person, role] of Object.entries(members))
      await this.backend.pool.query("insert into public.members (topic, user_id, role) values ($1, $2, $3)", [name, person, role]);
  }

  async query<T extends pg.QueryResultRow>(text: string, values: unknown[] = []): Promise<T[]> {
    return (await this.backend.pool.query<T>(text, values)).rows;
  }

  /** Returns a bearer like those of the server. */
  token(claims: Record<string, unknown>): string {
    return sign({ role: "authenticated", aud: "authenticated", org: "demo", ...claims }, this.daemon.secret(), 600);
  }

  /** Kills the daemon and starts it again on the same port. */
  async crash(downMs = 0): Promise<void> {
    await this.daemon.kill9();
    await new Promise((resolve) => setTimeout(resolve, downMs));
    await this.daemon.start();
  }

  async leave(): Promise<void> {
    for (const seat of this.#seats.splice(0)) {
      await seat.context.close();
      await seat.wire.close();
    }
  }

  async close(): Promise<void> {
    await this.leave();
    await this.backend.close();
  }
}

/** One stage for all tests of a worker; each test has its own seats and topics. */
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
