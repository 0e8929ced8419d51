// Figures of the page in a real browser, with many finished tasks in the tables: `npm run measure`. Not a part of the
// tests: a figure depends on the machine, so none is compared with a bar here.
import type { Page } from "@playwright/test";
import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { type Stage, expect, isLive, test } from "./stage.ts";

const FINISHED = Number(process.env.FINISHED ?? 1_000_000);
const RATE = Number(process.env.RATE ?? 1000);
const SECONDS = Number(process.env.SECONDS ?? 60);
const READINGS = Number(process.env.READINGS ?? 30);
const BATCH = 100_000;
const HISTORY = fileURLToPath(new URL("../../../../bench/src/sql/history.sql", import.meta.url));
const DIST = fileURLToPath(new URL("../../dist", import.meta.url));
const FIGURES = fileURLToPath(new URL("../../test-results/measure.json", import.meta.url));

test.skip(!process.env.MEASURE, "npm run measure");
test.setTimeout(3_600_000);

/** Writes finished tasks with their offers, assignments and events, as the benchmarks do. */
async function seed(seats: Stage): Promise<void> {
  const history = readFileSync(HISTORY, "utf8").replaceAll("'bench'", "'demo'");
  const client = await seats.pool.connect();
  try {
    await client.query("set session_replication_role = replica; set statement_timeout = 0");
    for (let from = 0; from < FINISHED; from += BATCH) await client.query(history, [from + 1, Math.min(FINISHED, from + BATCH), 1]);
    for (const table of ["tasks", "offers", "assignments", "events"]) await client.query(`vacuum (analyze) convoke.${table}`);
  } finally {
    client.release(true);
  }
}

const percentile = (values: number[], percent: number): number => [...values].sort((a, b) => a - b)[Math.ceil(((values.length - 1) * percent) / 100)] ?? Number.NaN;
const round = (ms: number): number => Math.round(ms * 10) / 10;

/** When a browser without a cache paints first, when the switchboard has its figures, and what was sent until then. */
async function firstPaint(page: Page): Promise<{ ms: number; readyMs: number; kib: number }> {
  const session = await page.context().newCDPSession(page);
  await session.send("Network.enable");
  await session.send("Network.setCacheDisabled", { cacheDisabled: true });
  await page.reload({ waitUntil: "commit" });
  const readyMs = await page.evaluate(() => new Promise<number>((resolve) => {
    const look = (): void => (document.querySelector(".tiles") ? resolve(performance.now()) : void requestAnimationFrame(look));
    look();
  }));
  const { ms, kib } = await page.evaluate(() => {
    const files = performance.getEntriesByType("resource").filter((entry) => /assets|dashboard/.test(entry.name)) as PerformanceResourceTiming[];
    const shell = performance.getEntriesByType("navigation")[0] as PerformanceNavigationTiming;
    const bytes = files.reduce((sum, { transferSize }) => sum + transferSize, shell.transferSize);
    return { ms: performance.getEntriesByName("first-contentful-paint")[0]?.startTime ?? Number.NaN, kib: bytes / 1024 };
  });
  await session.detach();
  return { ms, readyMs, kib };
}

/** Time from the moment in a task's id, which is its request, until `selector` is on the screen. */
async function untilShown(page: Page, id: string, selector: string): Promise<number> {
  const shown = await page.evaluate((selector) => new Promise<number>((resolve) => {
    const look = (): void => (document.querySelector(selector) ? resolve(Date.now()) : void requestAnimationFrame(look));
    look();
  }), selector);
  return shown - Number.parseInt(id.slice(0, 8) + id.slice(9, 13), 16);
}

async function rowDelays(seats: Stage, page: Page, origin: string): Promise<number[]> {
  await page.goto(`${origin}/dashboard/demo/tasks`);
  await isLive(page);
  await page.mouse.move(1, 1);
  const delays: number[] = [];
  for (let reading = 0; reading < READINGS; reading++) {
    const id = await seats.request("support.reply");
    delays.push(await untilShown(page, id, `tr[data-row="${id}"]`));
    await seats.reaches(id, "completed");
  }
  return delays;
}

/** Time from a command until its effect is on the screen of the task. */
async function focusDelays(seats: Stage, page: Page, origin: string): Promise<number[]> {
  const delays: number[] = [];
  for (let reading = 0; reading < Math.min(10, READINGS); reading++) {
    const id = await seats.request("index.rebuild");
    await seats.reaches(id, "running");
    await page.goto(`${origin}/dashboard/demo/tasks/${id}`);
    await isLive(page);
    await page.locator(".facts .state-running").waitFor();
    // The page has been open for a moment, as before a person's click.
    await page.waitForTimeout(500);
    const begun = Date.now();
    const shown = page.locator(".facts .state-canceling, .facts .state-canceled").first().waitFor().then(() => Date.now());
    await seats.api(`/v1/tasks/${id}/cancel`, {});
    delays.push((await shown) - begun);
    await seats.reaches(id, "canceled");
  }
  return delays;
}

/** Time from the click on a screen until its first row is drawn. */
async function listTimes(page: Page, origin: string, query: string): Promise<number[]> {
  const times: number[] = [];
  for (let reading = 0; reading < READINGS; reading++) {
    await page.goto(`${origin}/dashboard/demo/agents`);
    await isLive(page);
    times.push(await page.evaluate((to) => new Promise<number>((resolve) => {
      const begun = performance.now();
      const link = document.createElement("a");
      link.href = to;
      document.body.append(link);
      link.click();
      link.remove();
      const look = (): void => (document.querySelector("table.tasks tbody tr, .empty") ? resolve(performance.now() - begun) : void requestAnimationFrame(look));
      look();
    }), `${origin}/dashboard/demo/tasks${query}`));
  }
  return times;
}

async function afterCrash(seats: Stage, page: Page, origin: string): Promise<{ ms: number; stale: number }> {
  await page.goto(`${origin}/dashboard/demo/tasks?heartbeat=1000&reconnect=200`);
  await isLive(page);
  await seats.crash(async () => expect(page.locator("html")).toHaveAttribute("data-live", "no connection"));
  const ready = Date.now();
  await isLive(page);
  const ms = Date.now() - ready;
  const { tasks } = await seats.api<{ tasks: { id: string; state: string }[] }>("/v1/tasks?view=line&limit=50");
  const shown = await page.locator("tr[data-row]").evaluateAll((rows) => rows.map((row) => `${(row as HTMLElement).dataset.row} ${(row as HTMLElement).dataset.state}`));
  return { ms, stale: tasks.filter(({ id, state }, at) => shown[at] !== `${id} ${state}`).length };
}

/** Long tasks of the page and its memory while many tasks are requested. */
async function underLoad(seats: Stage, page: Page, origin: string): Promise<{ longest: number; long: number; heapMib: number; requested: number }> {
  await page.goto(`${origin}/dashboard/demo/tasks`);
  await isLive(page);
  await page.evaluate(() => {
    const seen = ((window as unknown as { tasks: number[] }).tasks = []) as number[];
    new PerformanceObserver((list) => list.getEntries().forEach(({ duration }) => seen.push(duration))).observe({ type: "longtask", buffered: false });
  });
  let requested = 0;
  for (let second = 0; second < SECONDS; second++) {
    const next = Date.now() + 1000;
    await seats.pool.query("select count(convoke.request_task('load', '{}', requires => '{load.nobody}', org => 'demo')) from generate_series(1, $1::int)", [RATE]);
    requested += RATE;
    await new Promise((resolve) => setTimeout(resolve, Math.max(0, next - Date.now())));
  }
  const long = await page.evaluate(() => (window as unknown as { tasks: number[] }).tasks);
  const session = await page.context().newCDPSession(page);
  const { usedSize } = (await session.send("Runtime.getHeapUsage")) as { usedSize: number };
  return { longest: Math.max(0, ...long), long: long.filter((ms) => ms > 100).length, heapMib: usedSize / 1_048_576, requested };
}

const bundle = (): number => readdirSync(`${DIST}/assets`).filter((name) => /\.(js|css)$/.test(name)).reduce((sum, name) => sum + gzipSync(readFileSync(`${DIST}/assets/${name}`), { level: 9 }).length, 0);

test("figures of the page", async ({ seats }) => {
  const figures: Record<string, number> = { finished: FINISHED, bundle_kib: round(bundle() / 1024) };
  const { page, origin } = await seats.person("ana", {}, "operator");
  const seeded = Date.now();
  await seed(seats);
  figures.seeded_seconds = round((Date.now() - seeded) / 1000);
  const paint = await firstPaint(page);
  Object.assign(figures, { first_paint_ms: round(paint.ms), switchboard_ms: round(paint.readyMs), first_screen_kib: round(paint.kib) });
  for (const [name, query] of [["list", ""], ["list_failed", "?state=failed"], ["list_rare_kind", "?kind=no.such"]] as const) {
    const times = await listTimes(page, origin, query);
    Object.assign(figures, { [`${name}_p50_ms`]: round(percentile(times, 50)), [`${name}_p95_ms`]: round(percentile(times, 95)) });
  }
  const rows = await rowDelays(seats, page, origin);
  Object.assign(figures, { row_p50_ms: percentile(rows, 50), row_p95_ms: percentile(rows, 95) });
  const focused = await focusDelays(seats, page, origin);
  Object.assign(figures, { focused_p50_ms: percentile(focused, 50), focused_p95_ms: percentile(focused, 95) });
  const crash = await afterCrash(seats, page, origin);
  Object.assign(figures, { right_after_restart_ms: crash.ms, stale_rows: crash.stale });
  const load = await underLoad(seats, page, origin);
  Object.assign(figures, { load_requested: load.requested, load_longest_task_ms: round(load.longest), load_tasks_over_100_ms: load.long, load_heap_mib: round(load.heapMib) });
  writeFileSync(FIGURES, `${JSON.stringify(figures, null, 2)}\n`);
  console.log(figures);
});
