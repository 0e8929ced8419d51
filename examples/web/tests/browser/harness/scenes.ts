// Each page with content and other people: what the checks of the looks and the pictures of the README show.
import { expect, type Page } from "@playwright/test";
import { randomUUID } from "node:crypto";
import { startBidder } from "../../../server/bidder.mjs";
import { toHex } from "../../../lib/strokes.ts";
import { fresh, isLive, poll, type Seat, type Stage } from "./stage.ts";
import { has, html } from "./wait.ts";

export interface Cast {
  stage: Stage;
  ana: Seat;
  ben: Seat;
  cleo: Seat;
}

/** Opens a page as Ana sees it. */
export type Scene = (cast: Cast) => Promise<Page>;

export const SCENES: Record<string, Scene> = {
  start: ({ ana }) => ana.open("/", { live: false }),
  chat,
  call,
  editor,
  board,
  analytics,
  console: agents,
};

async function chat({ stage, ana, ben }: Cast): Promise<Page> {
  const talk: [string, string, string][] = [
    ["ana", "Shall we look at the board before lunch?", "👍"],
    ["ben", "Yes. I put the new routes on it this morning.", "🎉"],
    ["ben", "The second one is the risky one: it crosses the river twice, and the ferry stops at six.", ""],
    ["cleo", "Then let us begin with that. I have the timetable here.", "👀"],
    ["ana", "Good. I ask the robot for a summary meanwhile.", ""],
  ];
  if (!(await stage.query("select from messages where room = 'lobby' limit 1")).length)
    for (const [author, body, emoji] of talk) {
      const [row] = await stage.query<{ id: string }>("insert into messages (room, author, client_id, body) values ('lobby', $1, gen_random_uuid(), $2) returning id", [author, body]);
      if (emoji) await stage.query("insert into reactions (message_id, room, user_id, emoji) select $1, 'lobby', who, $2 from unnest(array['ana', 'ben']) who", [row!.id, emoji]);
    }
  await ben.open("/chat/");
  const page = await ana.open("/chat/");
  await expect(page.locator(".message")).not.toHaveCount(0);
  await expect(page.locator(".people li")).toHaveCount(2);
  return page;
}

/** A camera that shows a person's outline. */
function camera(hue: number): void {
  const draw = (context: CanvasRenderingContext2D): void => {
    const sway = Math.sin(Date.now() / 700) * 6;
    const wall = context.createLinearGradient(0, 0, 640, 360);
    wall.addColorStop(0, `hsl(${hue} 35% 68%)`);
    wall.addColorStop(1, `hsl(${hue + 40} 30% 42%)`);
    context.fillStyle = wall;
    context.fillRect(0, 0, 640, 360);
    context.fillStyle = `hsl(${hue} 45% 24%)`;
    context.beginPath();
    context.arc(320 + sway, 150, 62, 0, 7);
    context.ellipse(320 + sway / 2, 372, 150, 140, 0, 0, 7);
    context.fill();
  };
  navigator.mediaDevices.getUserMedia = async () => {
    const canvas = Object.assign(document.createElement("canvas"), { width: 640, height: 360 });
    const context = canvas.getContext("2d")!;
    draw(context);
    setInterval(() => draw(context), 100);
    return canvas.captureStream(10);
  };
}

async function call({ ana, ben, cleo }: Cast): Promise<Page> {
  const pages: Page[] = [];
  for (const [seat, hue] of [[ana, 220], [ben, 150], [cleo, 20]] as const) {
    await seat.context.addInitScript(camera, hue);
    const page = await seat.open("/call/");
    await page.getByRole("button", { name: "Join" }).click();
    pages.push(page);
  }
  for (const page of pages) await has(page, "data-connected", "2");
  await pages[1]!.getByLabel("Say to the call").fill("Can you see the board?");
  await pages[1]!.getByRole("button", { name: "Say", exact: true }).click();
  await expect(pages[0]!.locator(".log")).toContainText("Can you see the board?");
  await poll(async () => Math.min(...(await pages[0]!.evaluate(() => window.framesDecoded())))).toBeGreaterThan(0);
  return pages[0]!;
}

async function editor({ ana, ben }: Cast): Promise<Page> {
  const [page, other] = [await ana.open("/editor/"), await ben.open("/editor/")];
  const text = "Release notes\n\nEvery message arrives once, in one order, also after a tunnel.\nThe board keeps what you draw while you are offline.\n\nTo do\n- say how to move an app from Supabase\n- a picture of each page\n";
  if ((await html(page).getAttribute("data-count")) === "0") {
    await page.locator(".cm-content").focus();
    await page.keyboard.insertText(text);
  }
  await expect(html(other)).not.toHaveAttribute("data-count", "0");
  await other.locator(".cm-content").focus();
  await other.keyboard.press("Control+Home");
  for (let line = 0; line < 3; line++) await other.keyboard.press("ArrowDown");
  await other.keyboard.press("End");
  await expect(page.locator(".cm-ySelectionInfo")).toHaveText("Ben");
  await expect(page.locator(".saved")).toHaveText("saved");
  return page;
}

/** A line by hand through the corners, in units of the board. */
function line(corners: [number, number][]): number[] {
  return corners.slice(1).flatMap(([x, y], i) => {
    const [fromX, fromY] = corners[i]!;
    return Array.from({ length: 24 }, (_, n) => [fromX + ((x - fromX) * n) / 23 + Math.sin(n * 1.3) * 6, fromY + ((y - fromY) * n) / 23 + Math.cos(n * 1.7) * 6, 0.5]).flat();
  });
}

async function board({ stage, ana, ben }: Cast): Promise<Page> {
  const box = (x: number, y: number): [number, number][] => [[x, y], [x + 900, y], [x + 900, y + 560], [x, y + 560], [x, y]];
  const strokes: [string, string, number, [number, number][]][] = [
    ["ana", "#0b62c4", 26, box(300, 700)],
    ["ana", "#0b62c4", 26, box(300, 2700)],
    ["ben", "#c04a20", 26, box(2600, 1700)],
    ["ben", "#c04a20", 22, [[1250, 980], [2000, 1300], [2540, 1880]]],
    ["ben", "#c04a20", 22, [[2420, 1690], [2550, 1890], [2330, 1850]]],
    ["ana", "#2e8b57", 22, [[2550, 2100], [1900, 2700], [1250, 2960]]],
    ["ana", "#2e8b57", 22, [[1410, 2790], [1240, 2965], [1470, 3020]]],
    ["ana", "#2e8b57", 22, [[480, 980], [640, 1120], [980, 820]]],
  ];
  if (!(await stage.query("select from strokes where board = 'lobby' limit 1")).length)
    for (const [author, color, size, corners] of strokes)
      await stage.query("insert into strokes (id, board, author, style, points) values ($1, 'lobby', $2, $3, $4)", [randomUUID(), author, { color, size }, toHex(line(corners))]);
  const page = await ana.open("/board/");
  const other = await ben.open("/board/");
  await expect(html(page)).not.toHaveAttribute("data-count", "0");
  const sheet = (await other.locator(".sheet").boundingBox())!;
  await other.mouse.move(sheet.x + sheet.width * 0.62, sheet.y + sheet.height * 0.5);
  await expect(page.locator(".pointer")).toHaveText("Ben");
  return page;
}

async function analytics({ stage, ana }: Cast): Promise<Page> {
  await stage.query("delete from analytics_events where source in ('api', 'load')");
  await stage.query(`
    insert into analytics_events (org, at, source, name, value, dims)
    select 'demo', clock_timestamp() - (60 - n) * interval '1 second', 'api', 'request', round(120 + 45 * sin(n / 6.0) + 20 * sin(n * 1.7)),
           jsonb_build_object('route', (array['/search', '/search', '/search', '/cart', '/cart', '/pay', '/login'])[1 + n % 7])
      from generate_series(1, 60) n`);
  await stage.query("insert into analytics_events (org, at, source, name, value) select 'demo', clock_timestamp(), 'load', 'cpu', 68");
  const page = await ana.open("/analytics/");
  await expect(page.locator('[data-widget="latency"]')).toHaveAttribute("data-points", "50");
  await expect(page.locator('[data-widget="load"] .big')).toHaveText("68");
  return page;
}

async function agents({ stage, ana, ben }: Cast): Promise<Page> {
  // A name that is new to the daemon: tasks of an earlier scene are not offered again.
  const known = (await stage.query("select from convoke.tasks where kind = 'text.write' limit 1")).length > 0;
  const [kind, agent] = known ? [fresh("text.write"), fresh("robot")] : ["text.write", "robot"];
  const robot = startBidder(stage.daemon.url.origin, stage.token({ agent_id: agent }), { agent, capabilities: [kind] });
  const [page, other] = [await ana.open("/console/"), await ben.open("/console/")];
  page.once("close", () => robot.stop());
  for (const each of [page, other]) {
    await each.getByLabel("Capabilities").fill(`${kind}, text.review`);
    await each.getByRole("button", { name: "Go on duty" }).click();
  }
  await poll(async () => (await stage.query("select from convoke.agents where status = 'present' and capabilities @> array[$1]", [kind])).length).toBe(3);
  const request = async (on: Page, words: string, award: string): Promise<void> => {
    await on.getByLabel("What is to be done").fill(words);
    await on.getByLabel("Needs").fill(kind);
    await on.getByLabel("Award").selectOption(award);
    await on.getByLabel("Seconds to offer").fill("120");
    await on.getByRole("button", { name: "Request", exact: true }).click();
  };
  const offer = async (on: Page, words: string, cost: string): Promise<void> => {
    const form = on.locator(".requests > li").filter({ hasText: words }).getByRole("form", { name: "Offer" });
    await form.getByLabel("Cost").fill(cost);
    await form.getByRole("button", { name: "Offer" }).click();
  };
  await request(page, "Write two lines for the release notes", "cheapest");
  await offer(page, "two lines", "0.0003");
  await offer(other, "two lines", "0.0006");
  await page.getByRole("button", { name: "Accept" }).click();
  await page.getByLabel("Progress, %").fill("40");
  await page.locator(".asked").getByRole("button", { name: "Why?" }).click();
  await expect(page.locator(".asked .winner td").first()).toHaveText("ana");
  await request(page, "Check the spelling of the guide", "requester");
  await offer(other, "spelling", "0.0004");
  await expect(page.getByRole("button", { name: "Choose" })).toHaveCount(2);
  await other.getByLabel("To", { exact: true }).fill("agent:ana");
  await other.getByLabel("Text", { exact: true }).fill("Take mine, it is quicker");
  await other.getByRole("button", { name: "Say" }).click();
  await expect(page.locator(".messages")).toContainText("Take mine");
  await expect(page.locator(".roster li").filter({ hasText: "ana" }).locator("progress")).toHaveAttribute("value", "0.4");
  await isLive(page);
  return page;
}
