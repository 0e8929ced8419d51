// The classes that hold channels, against a real daemon, by the public test utilities.
import { createClient, type SupabaseClient } from "@supabase/supabase-js";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import WebSocket from "ws";
import { AgentCommunicationManager } from "../../lib/AgentCommunicationManager.ts";
import { AgentPresenceManager } from "../../lib/AgentPresenceManager.ts";
import { PresenceManager, presenceKey } from "../../lib/PresenceManager.ts";
import { RealtimeConnectionManager } from "../../lib/RealtimeConnectionManager.ts";
import { RealtimeTestUtils, WaitedInVain } from "../../lib/RealtimeTestUtils.ts";
import { Room } from "../../lib/room.ts";
import { sign } from "../../server/tokens.mjs";
import { Backend } from "./backend.ts";

const { joined, waitForBroadcast, waitForChange, waitUntil } = RealtimeTestUtils;
let backend: Backend;
const clients: SupabaseClient[] = [];

beforeAll(async () => {
  backend = await Backend.open();
  await backend.migrate(); // Twice: what is applied is not applied again.
});

afterEach(async () => {
  for (const client of clients.splice(0)) await client.removeAllChannels();
});

afterAll(() => backend?.close());

function client(sub: string, claims: Record<string, unknown> = {}): SupabaseClient {
  const token = sign({ role: "authenticated", sub, org: "demo", ...claims }, backend.daemon.secret(), 600);
  const made = createClient(backend.daemon.url.origin, sign({ role: "anon" }, backend.daemon.secret(), 600), {
    accessToken: async () => token,
    realtime: { transport: WebSocket as never, reconnectAfterMs: () => 100, heartbeatIntervalMs: 500 },
  });
  clients.push(made);
  return made;
}

test("a room is live after its rows are read, and buffered changes follow them", async () => {
  const room = new Room(client("ana"), "chat:lobby", { changes: [{ table: "messages", filter: "room=eq.lobby" }] });
  const order: string[] = [];
  room.onLoad(async () => {
    order.push("load");
    // Committed during the read: it must be told, and after it.
    if (order.length === 1) await backend.pool.query("insert into messages (room, author, client_id, body) values ('lobby', 'ana', gen_random_uuid(), 'meanwhile')");
  });
  const change = waitForChange(room, ({ type, new: row }) => type === "INSERT" && row.body === "meanwhile");
  room.on("change", () => order.push("change"));
  await joined(room);
  await change;
  expect(order[0]).toBe("load");
  expect(order).toContain("change");
});

test("a failed read is retried before the room is live", async () => {
  const room = new Room(client("ana"), "chat:lobby");
  let tries = 0;
  room.onLoad(async () => {
    tries += 1;
    if (tries < 3) throw new Error("the database is away");
  });
  await joined(room);
  expect(tries).toBe(3);
});

test("a stranger is refused with the reason, and a wait that times out names its event", async () => {
  const room = new Room(client("eve"), "chat:lobby");
  await expect(joined(room)).rejects.toThrow(/refused/);
  const open = await joined(new Room(client("ana"), "chat:lobby"));
  const vain = waitForBroadcast(open, "typing", () => true, { withinMs: 100 });
  await expect(vain).rejects.toThrow(WaitedInVain);
  await expect(vain).rejects.toThrow(/"typing" on chat:lobby; heard nothing/);
});

test("a broadcast reaches others, and none is sent before the join", async () => {
  const [ana, ben] = [new Room(client("ana"), "chat:lobby"), new Room(client("ben"), "chat:lobby")];
  expect(await ana.send("typing", { n: 0 })).toBe(false);
  await Promise.all([joined(ana), joined(ben)]);
  const heard = waitForBroadcast<{ n: number }>(ben, "typing", ({ n }) => n === 2);
  expect(await ana.send("typing", { n: 1 })).toBe(true);
  await ana.send("typing", { n: 2 });
  expect(await heard).toEqual({ n: 2 });
});

test("presence groups tabs by person, survives a crash of the daemon, and ends with the tab", async () => {
  const tab = async (user: string, id: string): Promise<PresenceManager> => {
    const room = new Room(client(user), "chat:design", { presenceKey: presenceKey(user, id) });
    const presence = new PresenceManager(room, { user, tab: id, name: user });
    await joined(room);
    return presence;
  };
  const [one, two, ben] = [await tab("ana", "tab-1111"), await tab("ana", "tab-2222"), await tab("ben", "tab-3333")];
  const people = (): string => ben.people().map(({ user, tabs }) => `${user}:${tabs.length}`).join(" ");
  await waitUntil(ben.room, `ana with two tabs; there is ${people()}`, () => people() === "ana:2 ben:1");
  await backend.daemon.kill9();
  await waitUntil(ben.room, "the room to be down", () => ben.room.status === "down");
  await backend.daemon.start();
  // Ben's page still shows who was there before. Somebody who comes now sees only who has tracked again.
  const cleo = await tab("cleo", "tab-4444");
  const seen = (): string => cleo.people().map(({ user, tabs }) => `${user}:${tabs.length}`).join(" ");
  await waitUntil(cleo.room, "everybody to be back", () => seen() === "ana:2 ben:1 cleo:1");
  await waitUntil(ben.room, "Cleo", () => people() === "ana:2 ben:1 cleo:1");
  await one.close();
  await waitUntil(ben.room, "one tab of Ana", () => people() === "ana:1 ben:1 cleo:1");
  expect(two.people().length).toBeGreaterThan(0);
});

test("the connection manager shares a room, counts its users, and closes it when idle", async () => {
  const manager = new RealtimeConnectionManager(client("ana"), 1000);
  const room = manager.getChannel("chat:lobby");
  expect(manager.getChannel("chat:lobby")).toBe(room);
  expect(manager.users("chat:lobby")).toBe(2);
  expect(() => manager.getChannel("chat:lobby", { changes: [{ table: "messages" }] })).toThrow(/other options/);
  await room.whenLive();
  manager.releaseChannel("chat:lobby");
  manager.releaseChannel("chat:lobby");
  manager.releaseChannel("chat:lobby"); // Once too often is not minus one.
  expect(manager.users("chat:lobby")).toBe(0);
  expect(manager.pruneInactive(Date.now())).toEqual([]);
  expect(room.status).toBe("live");
  expect(manager.getChannel("chat:lobby")).toBe(room);
  manager.releaseChannel("chat:lobby");
  expect(manager.pruneInactive(Date.now() + 2000)).toEqual(["chat:lobby"]);
  await manager.close();
});

test("agents bid, work and talk over one channel each, and a message to another org is refused", async () => {
  const agent = async (id: string, capabilities: string[]): Promise<[AgentCommunicationManager, AgentPresenceManager]> => {
    const made = new AgentCommunicationManager(new RealtimeConnectionManager(client(id, { agent_id: id })), id, "demo", async () => undefined);
    const presence = new AgentPresenceManager(made.own, made.orgRoom);
    await presence.set({ capabilities, slots: 1, description: "a test" });
    await Promise.all([made.own.whenLive(), made.orgRoom.whenLive()]);
    return [made, presence];
  };
  const [boss] = await agent("boss", []);
  const [worker, presence] = await agent("worker", ["unit.work"]);
  await waitUntil(worker.orgRoom, "the worker in the roster", () => presence.roster().some((line) => line.agent === "worker"));
  await boss.request({ kind: "unit.work", requires: ["unit.work"], input: { text: "add" }, policy: { bid_window: "10s" } }, "add", false);
  await waitUntil(worker.own, "the request", () => worker.requests.size === 1);
  const [asked] = [...worker.requests.values()];
  await worker.offer(asked!.id, { cost: 5, eta_ms: 100, confidence: 0.9 });
  await waitUntil(worker.own, "the award", () => [...worker.assignments.values()].some((work) => work.state === "awarded"));
  const [work] = [...worker.assignments.values()];
  await worker.accept(work!);
  await waitUntil(worker.own, "the start", () => worker.assignments.get(work!.assignment_id)?.state === "working");
  await worker.finish(worker.assignments.get(work!.assignment_id)!, { sum: 3 });
  await waitUntil(boss.own, "the end", () => [...boss.requested.values()].some((task) => task.state === "completed"));
  await boss.message("agent:worker", "thank you");
  await waitUntil(worker.own, "the thanks", () => worker.messages.some((said) => said.text === "thank you" && said.from === "boss"));
  const refused = new Promise<string>((resolve) => boss.on("change", () => boss.messages.at(-1)?.refused && resolve(boss.messages.at(-1)!.refused)));
  await boss.message("org:elsewhere", "hello?");
  expect(await refused).toMatch(/^forbidden/);
  boss.close();
  worker.close();
});
