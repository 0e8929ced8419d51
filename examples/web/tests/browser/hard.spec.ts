// What a page must survive that belongs to no single feature: a browser without storage, a server that comes late, a session
// that ends, a wrong clock, texts that are hard to hold.
import type { Page } from "@playwright/test";
import { expect, fresh, isLive, isStored, poll, test } from "./harness/stage.ts";
import { has, html } from "./harness/wait.ts";

const PAGES = ["chat/", "call/", "editor/", "board/", "analytics/", "console/"];
const say = async (page: Page, text: string): Promise<void> => {
  await page.getByLabel("Message", { exact: true }).fill(text);
  await page.keyboard.press("Enter");
};
const bodies = (page: Page) => page.locator(".message[data-state=stored] .body");

test("pages work in a browser that refuses its storage", async ({ seats, stage }) => {
  const doc = fresh("refused");
  await stage.topic(`doc:${doc}`);
  await stage.query("insert into public.documents (id, title) values ($1, 'Refused')", [doc]);
  const ana = await seats.seat("ana");
  await ana.context.addInitScript(() => {
    Object.defineProperty(window, "localStorage", { get: () => { throw new DOMException("denied", "SecurityError"); } });
  });
  for (const path of PAGES) {
    const page = await ana.open(`/${path}${path === "editor/" ? `?doc=${doc}` : ""}`);
    await page.getByRole("button", { name: "Theme" }).click();
    await has(page, "data-theme", "dark");
    if (path === "editor/") {
      await page.getByRole("textbox", { name: "Text" }).pressSequentially("kept");
      await expect(page.locator(".saved")).toHaveText("saved");
    }
    await page.close();
  }
});

test("a full storage is reported while changes are unsaved, and nothing on screen is lost", async ({ seats, stage }) => {
  const doc = fresh("full");
  await stage.topic(`doc:${doc}`);
  await stage.query("insert into public.documents (id, title) values ($1, 'Full')", [doc]);
  const ana = await seats.seat("ana");
  const page = await ana.open(`/editor/?doc=${doc}`);
  await page.evaluate(() => {
    for (let size = 4_000_000; size >= 1; size = Math.floor(size / 2))
      for (;;) {
        try {
          localStorage.setItem(`fill ${size} ${localStorage.length}`, "x".repeat(size));
        } catch {
          break;
        }
      }
  });
  const leaving = (): Promise<boolean> => page.evaluate(() => !window.dispatchEvent(new Event("beforeunload", { cancelable: true })));
  ana.wire.down();
  await page.getByRole("textbox", { name: "Text" }).pressSequentially("still on screen");
  await expect(page.locator(".notice.problem")).toContainText("storage is full or blocked");
  await expect(page.locator(".cm-content")).toContainText("still on screen");
  expect(await leaving()).toBe(true);
  ana.wire.restore();
  await expect(page.locator(".saved")).toHaveText("saved");
  expect(await leaving()).toBe(false);
  const late = await (await seats.seat("ben")).open(`/editor/?doc=${doc}`);
  await expect(late.locator(".cm-content")).toContainText("still on screen");
});

test("unstored changes pass from tab to tab, and invalid storage is ignored", async ({ seats, stage }) => {
  const doc = fresh("tabs");
  await stage.topic(`doc:${doc}`);
  await stage.query("insert into public.documents (id, title) values ($1, 'Tabs')", [doc]);
  const ana = await seats.seat("ana");
  const inserts = "**/rest/v1/document_updates*";
  await ana.context.route(inserts, (route) => (route.request().method() === "POST" ? route.abort() : route.continue()));
  const first = await ana.open(`/editor/?doc=${doc}`);
  await first.getByRole("textbox", { name: "Text" }).pressSequentially("handed on");
  await first.evaluate((prefix) => {
    localStorage.setItem(`${prefix}rubbish`, "\\x00ff");
    localStorage.setItem(`${prefix}no-hex`, "zz");
  }, `doc:${doc}:ana:`);
  await first.close();
  // This tab takes them over and ends at once, before the table has them.
  const second = await ana.open(`/editor/?doc=${doc}`);
  await expect(second.locator(".cm-content")).toContainText("handed on");
  await second.close();
  await ana.context.unroute(inserts);
  const third = await ana.open(`/editor/?doc=${doc}`);
  await expect(third.locator(".cm-content")).toContainText("handed on");
  await expect(third.locator(".saved")).toHaveText("saved");
  // At least once: a request of the closed tab may still have passed, and applying an update twice is harmless.
  await poll(async () => (await stage.query("select 1 from public.document_updates where doc = $1", [doc])).length).toBeGreaterThan(0);
  expect(await third.evaluate((prefix) => Object.keys(localStorage).filter((key) => key.startsWith(prefix)), `doc:${doc}:ana:`)).toEqual([]);
});

test("a page that is opened while the server or the daemon is away starts when they are back", async ({ seats, stage }) => {
  const ana = await seats.seat("ana");
  const failures: Record<string, number> = { "/config": 2, "/session/token": 2, "/rest/v1/members": 2, "/rest/v1/documents": 1 };
  await ana.context.route((url) => url.pathname in failures, (route) => {
    const path = new URL(route.request().url()).pathname;
    const left = failures[path] ?? 0;
    failures[path] = left - 1;
    return left > 0 ? route.abort() : route.continue();
  });
  const editor = await ana.open("/editor/");
  await expect(editor.locator(".title")).not.toHaveText("Editor");
  await expect(editor.getByRole("dialog")).toHaveCount(0);
  expect(Math.max(...Object.values(failures))).toBeLessThanOrEqual(0);
  await stage.daemon.kill9();
  const chat = await ana.open("/chat/", { live: false });
  await has(chat, "data-live", "down");
  await stage.daemon.start();
  for (const page of [editor, chat]) await isLive(page);
});

test("bearers that end while the page is open are renewed, and messages flow on", async ({ seats, stage }) => {
  const room = fresh("renewed");
  await stage.topic(`chat:${room}`);
  const server = await stage.backend.serve({ bearerSeconds: 10 });
  const [ana, ben] = [await seats.seat("ana", {}, server), await seats.seat("ben", {}, server)];
  // A page renews its bearer with the heartbeat.
  const [a, b] = [await ana.open(`/chat/?room=${room}&heartbeat=3000`), await ben.open(`/chat/?room=${room}&heartbeat=3000`)];
  const down: string[] = [];
  await a.exposeFunction("changed", (status: string) => down.push(status));
  await a.evaluate(() => new MutationObserver(() => (window as unknown as { changed: (status: string) => void }).changed(document.documentElement.dataset.live ?? "")).observe(document.documentElement, { attributeFilter: ["data-live"] }));
  // Cleo's page came later and gets no other bearer: when the daemon ends its channel, the first bearers of Ana and Ben
  // have ended, too.
  const cleo = await seats.seat("cleo", {}, server);
  const c = await cleo.open(`/chat/?room=${room}`);
  await c.route("**/session/token", (route) => route.abort());
  await expect(html(c)).toHaveAttribute("data-live", /down|refused/);
  await say(a, "from ana");
  await say(b, "from ben");
  for (const page of [a, b]) await expect(bodies(page)).toHaveCount(2);
  expect(down).toEqual([]);
});

test("a page says when its person signed out elsewhere, and never writes as another one", async ({ seats, stage }) => {
  const room = fresh("another");
  await stage.topic(`chat:${room}`);
  const server = await stage.backend.serve({ bearerSeconds: 30 });
  const ana = await seats.seat("ana", {}, server);
  const page = await ana.open(`/chat/?room=${room}`);
  expect((await ana.context.request.delete(`${ana.origin}/session`)).status()).toBe(204);
  await say(page, "one");
  await expect(page.locator(".notice.problem")).toContainText("You are no longer signed in");
  expect((await ana.context.request.post(`${ana.origin}/session`, { data: { person: "ben" } })).status()).toBe(200);
  await say(page, "two");
  await expect(page.locator(".notice.problem").filter({ hasText: "Ben" })).toBeVisible();
  await expect(bodies(page)).toHaveCount(2);
  expect(await stage.query("select distinct author from public.messages where room = $1", [room])).toEqual([{ author: "ana" }]);
});

for (const [name, hours] of [["ahead", 1], ["behind", -1]] as const)
  test(`a clock that is an hour ${name} is reported and does not affect the order`, async ({ seats, stage }) => {
    const room = fresh(`clock-${name}`);
    await stage.topic(`chat:${room}`);
    const [ana, ben] = [await seats.seat("ana"), await seats.seat("ben")];
    await ana.context.addInitScript((shift) => {
      const now = Date.now.bind(Date);
      Date.now = () => now() + shift;
    }, hours * 3_600_000);
    const [a, b] = [await ana.open(`/chat/?room=${room}`), await ben.open(`/chat/?room=${room}`)];
    await expect(a.locator(".notice")).toContainText(`clock is 3`);
    await say(a, "1");
    await expect(bodies(b)).toHaveText(["1"]);
    await say(b, "2");
    await expect(bodies(a)).toHaveText(["1", "2"]);
    await say(a, "3");
    for (const page of [a, b]) await expect(bodies(page)).toHaveText(["1", "2", "3"]);
    for (const path of PAGES) await (await ana.open(`/${path}`)).close();
  });

test("emoji and right-to-left texts arrive unchanged, and NUL and lone surrogates are replaced", async ({ seats, stage }) => {
  const room = fresh("texts");
  await stage.topic(`chat:${room}`);
  await stage.query("insert into public.people (id, name) values ('zoe', '👩‍🚀 زوي') on conflict do nothing");
  await stage.query("insert into public.members (topic, user_id, role) values ($1, 'zoe', 'writer')", [`chat:${room}`]);
  const [zoe, ben] = [await seats.seat("zoe"), await seats.seat("ben")];
  const [a, b] = [await zoe.open(`/chat/?room=${room}`), await ben.open(`/chat/?room=${room}`)];
  await expect(b.locator(".people")).toContainText("👩‍🚀 زوي");
  await expect(b.locator(".people .avatar").filter({ hasText: "👩‍🚀" })).toHaveCount(1);
  const texts = ["مرحبا بالعالم", "👩‍👩‍👧‍👦 e\u0301 \u202Eright to left", "half \uD83D a pair", "nul \u0000 inside"];
  for (const text of texts) {
    await a.getByLabel("Message", { exact: true }).evaluate((area, value) => ((area as HTMLTextAreaElement).value = value), text);
    await a.getByLabel("Message", { exact: true }).press("Enter");
  }
  const shown = ["مرحبا بالعالم", "👩‍👩‍👧‍👦 e\u0301 \u202Eright to left", "half \uFFFD a pair", "nul  inside"];
  for (const page of [a, b]) await poll(() => bodies(page).evaluateAll((list) => list.map((body) => body.firstChild?.textContent))).toEqual(shown);
  expect(await bodies(b).first().evaluate((body) => getComputedStyle(body).direction)).toBe("rtl");
});

test("a call that comes back from the back/forward cache starts again", async ({ seats, stage }) => {
  const room = fresh("cached");
  await stage.topic(`webrtc:${room}`);
  const page = await (await seats.seat("ana", { permissions: ["camera", "microphone"] })).open(`/call/?room=${room}`);
  await page.evaluate(() => {
    document.documentElement.dataset.before = "true";
    window.dispatchEvent(new PageTransitionEvent("pagehide", { persisted: true }));
    window.dispatchEvent(new PageTransitionEvent("pageshow", { persisted: true }));
  });
  await expect(html(page)).not.toHaveAttribute("data-before", "true");
  await isLive(page);
  await page.getByRole("button", { name: "Join" }).click();
  await has(page, "data-tiles", "1");
});

test("a handshake that is never answered is ended, and the page is live again", async ({ seats, stage }) => {
  const room = fresh("unanswered");
  await stage.topic(`chat:${room}`);
  const ana = await seats.seat("ana");
  const page = await ana.open(`/chat/?room=${room}&patience=1500`);
  ana.wire.swallow();
  ana.wire.cut();
  await has(page, "data-live", "down");
  // The next attempt hangs: the network is back, the connection of the attempt is not.
  await page.waitForEvent("websocket");
  ana.wire.restore();
  await isLive(page);
  await say(page, "back");
  await expect(bodies(page)).toHaveText(["back"]);
});

test("a message that is stored while the channel is down is shown as stored", async ({ seats, stage }) => {
  const room = fresh("stored");
  await stage.topic(`chat:${room}`);
  const page = await (await seats.seat("ana")).open(`/chat/?room=${room}`);
  await stage.daemon.kill9();
  await has(page, "data-live", "down");
  await say(page, "by HTTP");
  await expect(bodies(page)).toHaveText(["by HTTP"]);
  await isStored(page);
  await stage.daemon.start();
  await isLive(page);
});

test("a write whose answer never comes is repeated and stored once", async ({ seats, stage }) => {
  const room = fresh("hanging");
  await stage.topic(`chat:${room}`);
  const ana = await seats.seat("ana");
  const page = await ana.open(`/chat/?room=${room}&patience=1500`);
  let hanging = 0;
  await page.route("**/rest/v1/messages*", (route) => {
    // The first write is stored, and its answer is kept back for good.
    if (route.request().method() !== "POST" || hanging++) return route.continue();
    void route.fetch().catch(() => undefined);
  });
  await say(page, "once");
  await isStored(page);
  await say(page, "after it");
  await expect(bodies(page)).toHaveText(["once", "after it"]);
  await poll(() => hanging).toBeGreaterThan(1);
  expect(await stage.query("select count(*)::int as n from public.messages where room = $1", [room])).toEqual([{ n: 2 }]);
});
