import type { Locator, Page } from "@playwright/test";
import { hash } from "../../lib/ids.ts";
import { expect, fresh, isLive, poll, SIZE, test, type Stage } from "./harness/stage.ts";
import { has } from "./harness/wait.ts";

/** A widget and its source of the test's own. */
async function widget(stage: Stage, name: string, kind = "line", max = 50): Promise<void> {
  await stage.query("insert into widgets (id, org, kind, title, source, max_data_points, place) values ($1, 'demo', $2, $1, $1, $3, 99)", [name, kind, max]);
}

/** The hash that a ring of the newest `max` rows has. */
async function expected(stage: Stage, source: string, max = 50): Promise<string> {
  const rows = await stage.query<{ id: string; value: number }>("select id::text, value from analytics_events where source = $1 and value is not null and value <> 'NaN' order by at desc, analytics_events.id desc limit $2", [source, max]);
  return String(hash(rows.map((row) => `${row.id} ${row.value}`).join("\n")));
}

const sameAsTable = (page: Page, stage: Stage, source: string, id = source): Promise<void> =>
  poll(async () => (await page.locator(`[data-widget="${id}"]`).getAttribute("data-hash")) === (await expected(stage, source))).toBe(true);

test("every ring equals the newest fifty rows after inserts in random order, updates, deletes and a cut", async ({ seats, stage }) => {
  const storm = fresh("storm");
  await widget(stage, storm);
  await widget(stage, `${storm}-table`, "table");
  await stage.query("update widgets set source = $1 where id = $2", [storm, `${storm}-table`]);
  const [ana, ben] = [await seats.seat("ana"), await seats.seat("ben")];
  const pages = [await ana.open("/analytics/"), await ben.open("/analytics/")];
  const base = Date.now() - 3_600_000;
  const order = Array.from({ length: 500 * SIZE }, (_, i) => i).sort(() => Math.random() - 0.5);
  const insert = (of: number[]): Promise<unknown> =>
    stage.query("insert into analytics_events (org, at, source, name, value) select 'demo', to_timestamp($1::float8 + n * 2), $3, 'e', n from unnest($2::int[]) n", [base / 1000, of, storm]);
  for (let i = 0; i < order.length; i += 25) {
    await insert(order.slice(i, i + 25));
    if (i === 200) ana.wire.cut();
    if (i === 300) {
      ben.wire.down();
      await has(pages[1]!, "data-live", "down");
    }
    if (i === 400) ben.wire.restore();
    if (i % 50 === 0) {
      await stage.query("update analytics_events set value = value + 0.5 where id in (select id from analytics_events where source = $1 order by random() limit 2)", [storm]);
      await stage.query("update analytics_events set at = at - interval '1 minute' where id in (select id from analytics_events where source = $1 order by at desc limit 1)", [storm]);
      await stage.query("delete from analytics_events where id in (select id from analytics_events where source = $1 order by at desc limit 2)", [storm]);
    }
  }
  // The newest: a ring that has it has everything before it.
  await stage.query("insert into analytics_events (org, source, name, value) values ('demo', $1, 'e', -1)", [storm]);
  for (const page of pages) {
    await isLive(page);
    await expect(page.locator(`[data-widget="${storm}"]`)).toHaveAttribute("data-points", "50");
    await sameAsTable(page, stage, storm);
    await sameAsTable(page, stage, storm, `${storm}-table`);
  }
  await expect(pages[1]!.locator(".gaps")).toContainText("filled from the table");
});

test("a thousand inserts a second are drawn at most fifteen times a second, and a hidden page not at all", async ({ seats, stage }) => {
  const flood = fresh("flood");
  await widget(stage, flood);
  const [ana, ben] = [await seats.seat("ana"), await seats.seat("ben")];
  const [page, visible] = [await ana.open("/analytics/"), await ben.open("/analytics/")];
  const draws = (of: Page): Promise<number> => of.evaluate(() => Number(document.documentElement.dataset.draws));
  /** Inserts a thousand rows a second until `of` has drawn `times`; returns the seconds that it took. */
  const insertUntilDrawn = async (of: Page, times: number): Promise<number> => {
    const began = Date.now();
    for (const enough = (await draws(of)) + times; (await draws(of)) < enough; ) {
      const turn = Date.now() + 100;
      await stage.query("insert into analytics_events (org, at, source, name, value) select 'demo', clock_timestamp(), $1, 'e', n from generate_series(1, 100) n", [flood]);
      await new Promise((resolve) => setTimeout(resolve, Math.max(0, turn - Date.now())));
    }
    return (Date.now() - began) / 1000;
  };
  const times = 30 * SIZE;
  expect(times / (await insertUntilDrawn(page, times)), "draws a second").toBeLessThanOrEqual(15);
  await sameAsTable(page, stage, flood);
  // A page in the background, as far as it can know.
  const hide = (hidden: boolean): Promise<number> =>
    page.evaluate((value) => {
      Object.defineProperty(document, "hidden", { value, configurable: true });
      document.dispatchEvent(new Event("visibilitychange"));
      return Number(document.documentElement.dataset.draws);
    }, hidden);
  const hidden = await hide(true);
  await insertUntilDrawn(visible, 15);
  await sameAsTable(visible, stage, flood);
  expect(await draws(page)).toBe(hidden);
  expect(await hide(false), "drawn at once on return").toBe(hidden + 1);
  await sameAsTable(page, stage, flood);
});

test("a widget that is added while live shows its rows and goes on", async ({ seats, stage }) => {
  const source = fresh("late");
  await stage.query("insert into analytics_events (org, at, source, name, value) select 'demo', now() - n * interval '1 second', $1, 'e', n from generate_series(1, 5) n", [source]);
  const [ana, ben] = [await seats.seat("ana"), await seats.seat("ben")];
  const [a, b] = [await ana.open("/analytics/"), await ben.open("/analytics/")];
  await a.getByText("Add a widget").click();
  await a.getByLabel("Title").fill(`Latecomer ${source}`);
  await a.getByLabel("Source").fill(source);
  await a.getByRole("button", { name: "Add", exact: true }).click();
  const region = (page: Page): Locator => page.getByRole("region", { name: `Latecomer ${source}` });
  for (const page of [a, b]) await expect(region(page)).toHaveAttribute("data-points", "5");
  await stage.query("insert into analytics_events (org, source, name, value) values ('demo', $1, 'e', 6)", [source]);
  for (const page of [a, b]) await expect(region(page)).toHaveAttribute("data-points", "6");
  await b.getByRole("button", { name: `Remove Latecomer ${source}` }).click();
  for (const page of [a, b]) await expect(region(page)).toHaveCount(0);
});

test("a value that is not a number is skipped and reported, and rows of other orgs are hidden", async ({ seats, stage }) => {
  const source = fresh("odd");
  await widget(stage, source);
  const ana = await seats.seat("ana");
  const page = await ana.open("/analytics/");
  const odd = page.locator(`[data-widget="${source}"]`);
  await stage.query("insert into analytics_events (org, source, name, value) select org, $1, 'e', value from (values ('demo', 1), ('demo', null), ('demo', 'NaN'), ('demo', 'Infinity'), ('elsewhere', 2), ('demo', 3::float8)) as odd (org, value)", [source]);
  await expect(odd).toHaveAttribute("data-points", "2");
  await expect(odd.locator(".bad")).toContainText("3 left out: a value that is no number");
  await expect(odd.locator(".summary")).toContainText("2 values from 1 to 3");
  const refused = await ana.context.request.post(`${ana.origin}/rest/v1/analytics_events`, { headers: { authorization: `Bearer ${stage.token({ sub: "ana" })}` }, data: { source, name: "e", value: "many" } });
  expect(refused.status()).toBe(400);
});

test("broadcast values merge into the ring by their time", async ({ seats, stage }) => {
  const source = fresh("said");
  await widget(stage, source);
  await stage.query("insert into analytics_events (org, at, source, name, value) select 'demo', now() - n * interval '10 seconds', $1, 'e', n from generate_series(1, 3) n", [source]);
  const ana = await seats.seat("ana");
  const page = await ana.open("/analytics/");
  const said = page.locator(`[data-widget="${source}"]`);
  await expect(said).toHaveAttribute("data-points", "3");
  for (const value of [99, "many"])
    await stage.query("select realtime.send(jsonb_build_object('widget_id', $1::text, 'value', $2::jsonb, 'timestamp', now()), 'metric_update', 'dashboard:demo', true)", [source, JSON.stringify(value)]);
  await expect(said.locator(".summary")).toContainText("4 values from 1 to 99, last 99");
  await expect(said.locator(".bad")).toContainText("1 left out");
});
