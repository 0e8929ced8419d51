import { randomUUID } from "node:crypto";
import type { Page } from "@playwright/test";
import { toHex } from "../../lib/strokes.ts";
import { agree, expect, fresh, isDrawn, isLive, isStored, poll, SIZE, test, type Stage } from "./harness/stage.ts";
import { has } from "./harness/wait.ts";

declare global {
  interface Window {
    /** Strokes that were drawn on the settled canvas. */
    filled: number;
  }
}

const VIEW = { viewport: { width: 900, height: 700 }, deviceScaleFactor: 1 };

/** The board is square and in the middle of the sheet: its left edge, about. */
const LEFT = 170;

/** Draws a line through `points`, in pixels of the board. */
async function draw(page: Page, points: [number, number][], up = true): Promise<void> {
  const box = (await page.locator(".sheet").boundingBox())!;
  const [first, ...rest] = points.map(([x, y]): [number, number] => [box.x + LEFT + x, box.y + y]);
  await page.mouse.move(...first!);
  await page.mouse.down();
  for (const point of rest) await page.mouse.move(...point);
  if (up) await page.mouse.up();
}

/** A digest of the pixels. */
const picture = (page: Page): Promise<string> =>
  page.locator("canvas.settled").evaluate(async (canvas) => {
    const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode((canvas as HTMLCanvasElement).toDataURL()));
    return String(new Uint8Array(digest));
  });
const count = (page: Page, n: number): Promise<void> => has(page, "data-count", String(n));
const growing = (page: Page, n: number): Promise<void> => has(page, "data-growing", String(n));
const visible = (stage: Stage, board: string): Promise<{ n: number }[]> =>
  stage.query<{ n: number }>("select count(*)::int as n from strokes s where board = $1 and deleted_at is null and seq > coalesce((select max(seq) from clears c where c.board = $1), 0)", [board]);

test("two people draw fifty lines at once, and both and a late joiner see the same picture", async ({ seats, stage }) => {
  const board = fresh("lines");
  await stage.topic(`whiteboard:${board}`);
  const [ana, ben] = [await seats.seat("ana", VIEW), await seats.seat("ben", VIEW)];
  const [a, b] = [await ana.open(`/board/?board=${board}`), await ben.open(`/board/?board=${board}`)];
  await a.locator("[name=color]").fill("#d04030");
  await b.locator("[name=color]").fill("#2060c0");
  const each = 25 * SIZE;
  const lines = async (page: Page, shift: number): Promise<void> => {
    for (let i = 0; i < each; i++) await draw(page, [[100 + shift, 60 + i * 9], [300 + shift, 80 + ((i * 53) % 400)], [500 - shift, 60 + ((i * 31) % 420)]]);
  };
  await Promise.all([lines(a, 0), lines(b, 40)]);
  for (const page of [a, b]) await isStored(page);
  const cleo = await seats.seat("cleo", VIEW);
  const c = await cleo.open(`/board/?board=${board}`);
  await count(c, each * 2);
  await agree(c, a, b);
  // The sheet of each is resized and drawn again when the list of people grows.
  await poll(async () => new Set(await Promise.all([a, b, c].map(picture))).size).toBe(1);
  const styles = await stage.query<{ author: string; color: string }>("select distinct author, style->>'color' as color from strokes where board = $1 order by author", [board]);
  expect(styles, "each stroke keeps its painter's colour").toEqual([{ author: "ana", color: "#d04030" }, { author: "ben", color: "#2060c0" }]);
});

test("a stroke survives a disconnect, and a late joiner sees it grow", async ({ seats, stage }) => {
  const board = fresh("cut");
  await stage.topic(`whiteboard:${board}`);
  const [ana, ben] = [await seats.seat("ana", VIEW), await seats.seat("ben", VIEW)];
  const [a, b] = [await ana.open(`/board/?board=${board}`), await ben.open(`/board/?board=${board}`)];
  const zigzag = (from: number): [number, number][] => Array.from({ length: 30 }, (_, i): [number, number] => [from + i * 4, 100 + (i % 2) * 60]);
  await draw(a, zigzag(100), false);
  await growing(b, 1);
  const cleo = await seats.seat("cleo", VIEW);
  const c = await cleo.open(`/board/?board=${board}`);
  const box = (await a.locator(".sheet").boundingBox())!;
  await a.mouse.move(box.x + LEFT + 230, box.y + 120);
  await growing(c, 1);
  ana.wire.cut();
  for (const [x, y] of zigzag(240)) await a.mouse.move(box.x + LEFT + x, box.y + y);
  await a.mouse.up();
  await isStored(a);
  for (const page of [a, b, c]) {
    await count(page, 1);
    await growing(page, 0);
  }
  const late = await cleo.open(`/board/?board=${board}`);
  await count(late, 1);
  await agree(late, a, b, c);
  const [row] = await stage.query<{ points: number }>("select octet_length(points) / 12 as points from strokes where board = $1", [board]);
  expect(row?.points).toBeGreaterThanOrEqual(60);
});

test("concurrent clear and draw give both people and the table the same result", async ({ seats, stage }) => {
  const board = fresh("clear");
  await stage.topic(`whiteboard:${board}`);
  const [ana, ben] = [await seats.seat("ana", VIEW), await seats.seat("ben", VIEW)];
  const [a, b] = [await ana.open(`/board/?board=${board}`), await ben.open(`/board/?board=${board}`)];
  const rounds = 10 * SIZE;
  for (let i = 0; i < rounds; i++) {
    await Promise.all([a.getByRole("button", { name: "Clear" }).click(), draw(b, [[100 + i, 100], [200, 200 + i]])]);
  }
  for (const page of [a, b]) await isStored(page);
  expect((await stage.query("select 1 from clears where board = $1", [board])).length).toBe(rounds);
  expect((await stage.query("select 1 from strokes where board = $1", [board])).length).toBe(rounds);
  const [table] = await visible(stage, board);
  const cleo = await seats.seat("cleo", VIEW);
  const c = await cleo.open(`/board/?board=${board}`);
  await count(c, table!.n);
  await agree(c, a, b);
});

test("undo and eraser affect only own strokes, and redo restores them", async ({ seats, stage }) => {
  const board = fresh("undo");
  await stage.topic(`whiteboard:${board}`);
  const [ana, ben] = [await seats.seat("ana", VIEW), await seats.seat("ben", VIEW)];
  const [a, b] = [await ana.open(`/board/?board=${board}`), await ben.open(`/board/?board=${board}`)];
  await draw(a, [[100, 100], [300, 100]]);
  await count(b, 1);
  await draw(b, [[100, 200], [300, 200]]);
  await count(a, 2);
  await a.keyboard.press("Control+z");
  for (const page of [a, b]) await count(page, 1);
  await a.keyboard.press("Control+z"); // Nothing of Ana's is left; Ben's stays.
  await isStored(a);
  await count(b, 1);
  await a.getByRole("button", { name: "Redo" }).click();
  for (const page of [a, b]) await count(page, 2);
  await a.getByRole("button", { name: "Eraser" }).click();
  await draw(a, [[150, 90], [150, 100], [150, 200]]);
  for (const page of [a, b]) await count(page, 1);
  const rows = await stage.query<{ author: string; gone: boolean }>("select author, deleted_at is not null as gone from strokes where board = $1 order by author", [board]);
  expect(rows).toEqual([{ author: "ana", gone: true }, { author: "ben", gone: false }]);
  // By hand, past the page: Ben's stroke is not Ana's to take.
  const headers = { authorization: `Bearer ${stage.token({ sub: "ana" })}`, prefer: "return=representation" };
  const taken = await ana.context.request.patch(`${ana.origin}/rest/v1/strokes?board=eq.${board}&author=eq.ben`, { headers, data: { deleted_at: new Date().toISOString() } });
  expect(await taken.json()).toEqual([]);
});

test("with a thousand strokes a new one is drawn alone, and a very long one is stored in parts", async ({ seats, stage }) => {
  const [board, many] = [fresh("many"), 1000 * SIZE];
  await stage.topic(`whiteboard:${board}`);
  const points = toHex([100, 100, 0.5, 140, 120, 0.5, 180, 100, 0.5]);
  await stage.query("insert into strokes (id, board, author, style, points) select gen_random_uuid(), $1, 'ben', '{}', $2 from generate_series(1, $3::int)", [board, points, many]);
  const [ana, ben] = [await seats.seat("ana", VIEW), await seats.seat("ben", VIEW)];
  await ana.context.addInitScript(() => {
    window.filled = 0;
    const fill = CanvasRenderingContext2D.prototype.fill;
    CanvasRenderingContext2D.prototype.fill = function (...args: unknown[]) {
      if (this.canvas.className === "settled") window.filled += 1;
      return Reflect.apply(fill, this, args) as void;
    };
  });
  const [a, b] = [await ana.open(`/board/?board=${board}`), await ben.open(`/board/?board=${board}`)];
  for (const page of [a, b]) await count(page, many);
  // The list of people has grown: the sheet keeps its size from here on. A new size is drawn in the frame after it.
  await expect(a.locator(".people li")).toHaveCount(2);
  for (let frame = 0; frame < 2; frame++) await isDrawn(a);
  const before = await a.evaluate(() => window.filled);
  await draw(b, [[100, 100], [300, 300]]);
  await count(a, many + 1);
  expect((await a.evaluate(() => window.filled)) - before).toBe(1);
  // A pen that writes 45,000 points without a stop.
  await b.locator(".sheet").evaluate((sheet) => {
    const box = sheet.getBoundingClientRect();
    const at = (n: number): PointerEventInit => ({ pointerId: 1, bubbles: true, clientX: box.left + 200 + (n % 400), clientY: box.top + 50 + Math.floor(n / 100) });
    sheet.setPointerCapture = () => undefined;
    sheet.dispatchEvent(new PointerEvent("pointerdown", at(0)));
    for (let n = 0; n < 45_000; n += 5000)
      sheet.dispatchEvent(new PointerEvent("pointermove", { ...at(n), coalescedEvents: Array.from({ length: 5000 }, (_, i) => new PointerEvent("pointermove", at(n + i))) }));
    sheet.dispatchEvent(new PointerEvent("pointerup", at(0)));
  });
  await isStored(b);
  const sizes = await stage.query<{ points: number }>("select octet_length(points) / 12 as points from strokes where board = $1 and author = 'ben' order by seq offset $2::int", [board, many + 1]);
  expect(sizes.length).toBe(3);
  for (const page of [a, b]) await count(page, many + 4);
  const late = await ana.open(`/board/?board=${board}`);
  await count(late, many + 4);
  await agree(late, a, b);
});

test("invalid messages and a stroke of a million points have no effect on others", async ({ seats, stage }) => {
  const board = fresh("rubbish");
  await stage.topic(`whiteboard:${board}`);
  const ana = await seats.seat("ana", VIEW);
  await ana.context.clock.install();
  const a = await ana.open(`/board/?board=${board}`);
  const say = (payload: object): Promise<unknown> => stage.query("select realtime.send($1::jsonb, 'draw', $2, true)", [JSON.stringify(payload), `whiteboard:${board}`]);
  await say({ stroke: "x", from: 0, author: "ben", deltas: ["a", 1, 2] });
  await say({ stroke: "x", from: -5, author: "ben", deltas: [1, 2, 3] });
  await say({ stroke: 7, from: 0, author: "ben", deltas: [1, 2, 3] });
  await say({ stroke: "y", from: 0, author: "ben", deltas: Array.from({ length: 30_000 }, () => 1) });
  await say({ stroke: "z", from: 0, author: "ben", style: { color: "url(evil)", size: 1e9 }, deltas: [100, 100, 0.5, 1e9, -1e9, 9] });
  await growing(a, 1);
  const headers = { authorization: `Bearer ${stage.token({ sub: "ana" })}` };
  const huge = await ana.context.request.post(`${ana.origin}/rest/v1/strokes`, {
    headers,
    data: { id: randomUUID(), board, style: {}, points: `\\x${"0".repeat(24 * 60_001)}` },
  });
  expect(huge.status()).toBe(400);
  await draw(a, [[100, 100], [300, 100]]);
  await count(a, 1);
  // A stroke without an end disappears after ten seconds.
  await a.clock.fastForward(11_000);
  await growing(a, 0);
  await isLive(a);
});
