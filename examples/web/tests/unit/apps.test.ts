// The classes of the apps in Node.js: supabase-js against a real daemon and the server, by the public test utilities.
// Calls and charts need a browser: see tests/browser.
import { createClient, type SupabaseClient } from "@supabase/supabase-js";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import WebSocket from "ws";
import { CollaborativeEditor } from "../../lib/CollaborativeEditor.ts";
import { randomId } from "../../lib/ids.ts";
import { LiveDashboard } from "../../lib/LiveDashboard.ts";
import { presenceKey } from "../../lib/PresenceManager.ts";
import { RealtimeConnectionManager } from "../../lib/RealtimeConnectionManager.ts";
import { RealtimeTestUtils } from "../../lib/RealtimeTestUtils.ts";
import { RealTimeChatManager } from "../../lib/RealTimeChatManager.ts";
import { RealTimeWhiteboard } from "../../lib/RealTimeWhiteboard.ts";
import { sign } from "../../server/tokens.mjs";
import { Backend, type Server } from "./backend.ts";

const { joined, waitUntil } = RealtimeTestUtils;
let backend: Backend;
let server: Server;
const rooms: RealtimeConnectionManager[] = [];

beforeAll(async () => {
  backend = await Backend.open();
  server = await backend.serve({ dist: "styles" });
});

afterEach(async () => {
  for (const each of rooms.splice(0)) await each.close();
});

afterAll(() => backend?.close());

interface Tab {
  client: SupabaseClient;
  rooms: RealtimeConnectionManager;
  id: string;
  key: string;
}

/** A tab of a person, as `startApp` makes it in a page. */
function tab(person: string): Tab {
  const token = sign({ role: "authenticated", sub: person, org: "demo" }, backend.daemon.secret(), 600);
  const id = randomId();
  const client = createClient(`http://127.0.0.1:${server.port}`, token, {
    accessToken: async () => token,
    realtime: { transport: WebSocket as never, params: { client_id: id } },
  });
  const manager = new RealtimeConnectionManager(client);
  rooms.push(manager);
  return { client, rooms: manager, id, key: presenceKey(person, id) };
}

/** Resolves when the table of a query has `count` rows. */
const stored = (text: string, count: number): Promise<void> => expect.poll(async () => (await backend.pool.query(text)).rowCount, { timeout: 30_000 }).toBe(count);

async function chat(person: string): Promise<RealTimeChatManager> {
  const { client, rooms, id, key } = tab(person);
  const made = new RealTimeChatManager(client, rooms, "design", person, id, key);
  await joined(made.room);
  return made;
}

test("chat: two tabs that use one client id for two texts store both", async () => {
  const [one, two] = [await chat("ana"), await chat("ana")];
  const id = randomId();
  one.outbox.add(id, { kind: "new", body: "first" });
  await waitUntil(two.room, "the first text", () => two.list().some(({ body, state }) => body === "first" && state === "stored"));
  two.outbox.add(id, { kind: "new", body: "second" });
  for (const each of [one, two]) await waitUntil(each.room, "both texts", () => each.list().map(({ body, state }) => `${body} ${state}`).join() === "first stored,second stored");
  expect((await backend.pool.query("select distinct client_id from messages where room = 'design'")).rowCount).toBe(2);
});

test("chat: a reader's message is refused with the reason, and a long or an empty one is not sent", async () => {
  const dan = await chat("dan");
  const refused = new Promise<string>((resolve) => dan.on("problem", resolve));
  expect(dan.send("may I?")).toBeUndefined();
  expect(await refused).toMatch(/^Not sent: .*not permitted/);
  expect(dan.list().at(-1)).toMatchObject({ body: "may I?", state: "failed" });
  expect(dan.send("  ")).toMatch(/nothing to send/);
  expect(dan.send("x".repeat(20_001))).toMatch(/20001/);
});

async function board(person: string): Promise<RealTimeWhiteboard> {
  const { client, rooms, id, key } = tab(person);
  const made = new RealTimeWhiteboard(client, rooms, "lobby", person, id, key);
  await joined(made.room);
  return made;
}

test("whiteboard: others see a stroke grow and settle, undo hides it, a clear keeps what comes later", async () => {
  const [ana, ben] = [await board("ana"), await board("ben")];
  const shown = (of: RealTimeWhiteboard): string => of.strokes().map(({ author, style }) => `${author} ${style.color}`).join();
  const drawing = ana.begin({ color: "#ff0000", size: 8 });
  ana.extend(drawing, [1, 1, 0.5, 2, 2, 0.5]);
  await waitUntil(ben.room, "two points", () => ben.live.get(drawing)?.points.length === 6);
  ana.end(drawing);
  await waitUntil(ben.room, "the stroke", () => shown(ben) === "ana #ff0000" && ben.live.size === 0);
  expect(ben.undo(), "the stroke is not Ben's").toBe(false);
  expect(ana.undo()).toBe(true);
  await waitUntil(ben.room, "no stroke", () => shown(ben) === "");
  expect(ana.redo()).toBe(true);
  await waitUntil(ben.room, "the stroke again", () => shown(ben) === "ana #ff0000");
  ben.clearBoard();
  await waitUntil(ana.room, "an empty board", () => shown(ana) === "");
  const later = ben.begin({ color: "#0000ff", size: 8 });
  ben.extend(later, [5, 5, 0.5]);
  ben.end(later);
  await waitUntil(ana.room, "the later stroke", () => shown(ana) === "ben #0000ff");
  const late = await board("cleo");
  expect(shown(late)).toBe("ben #0000ff");
  for (const each of [ana, ben, late]) each.close();
});

async function editor(person: string, mayWrite = true): Promise<CollaborativeEditor> {
  const { client, rooms, id, key } = tab(person);
  const made = new CollaborativeEditor(client, rooms, "welcome", { id: person, name: person, color: "#000", colorLight: "#fff" }, id, mayWrite, key);
  await joined(made.room);
  return made;
}

test("editor: two people's edits converge, a late joiner has them, and a reader's are not sent", async () => {
  const [ana, ben] = [await editor("ana"), await editor("ben")];
  ana.text.insert(0, "from ana ");
  ben.text.insert(0, "from ben ");
  const text = (of: CollaborativeEditor): string => of.text.toString();
  for (const each of [ana, ben]) await waitUntil(each.room, "both texts", () => /from ana /.test(text(each)) && /from ben /.test(text(each)));
  expect(text(ana)).toBe(text(ben));
  await expect.poll(() => ana.unsaved + ben.unsaved, { timeout: 30_000 }).toBe(0);
  const dan = await editor("dan", false);
  expect(text(dan)).toBe(text(ana));
  dan.text.insert(0, "not sent ");
  const cleo = await editor("cleo");
  expect([text(cleo), dan.unsaved]).toEqual([text(ana), 0]);
  for (const each of [ana, ben, dan, cleo]) each.close();
});

test("dashboard: equal sources share a binding, and a ring follows inserts, updates, deletes and broadcasts", async () => {
  await backend.pool.query("insert into widgets (id, org, kind, title, source, place) select 'unit-' || kind, 'demo', kind, 'Unit', 'unit', 99 from unnest(array['line', 'table']) kind");
  const { client, rooms } = tab("ana");
  const dashboard = new LiveDashboard(client, rooms, "demo");
  const room = await joined(await dashboard.open());
  expect(room.options.changes?.filter(({ filter }) => filter === "source=eq.unit")).toHaveLength(1);
  const values = (): string => ["unit-line", "unit-table"].map((id) => dashboard.widgets.get(id)?.ring.points.map(({ value }) => value).join(" ")).join(" | ");
  const write = (text: string): Promise<unknown> => backend.pool.query(text);
  await write("insert into analytics_events (org, at, source, name, value) select 'demo', now() - n * interval '1 second', 'unit', 'e', n from generate_series(1, 3) n");
  await waitUntil(room, "three points", () => values() === "3 2 1 | 3 2 1");
  await write("update analytics_events set value = 20 where source = 'unit' and value = 2");
  await write("delete from analytics_events where source = 'unit' and value = 3");
  await waitUntil(room, "the changes", () => values() === "20 1 | 20 1");
  await write("select realtime.send(jsonb_build_object('widget_id', 'unit-line', 'value', 7, 'timestamp', now()), 'metric_update', 'dashboard:demo', true)");
  await waitUntil(room, "the broadcast", () => values() === "20 1 7 | 20 1");
  await stored("select from analytics_events where source = 'unit'", 2);
  dashboard.close();
});
