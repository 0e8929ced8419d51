import type { Page } from "@playwright/test";
import { agree, expect, fresh, isDrawn, isStored, poll, SIZE, test, type Stage } from "./harness/stage.ts";
import { has } from "./harness/wait.ts";

/** Creates a room and returns its name. */
async function newRoom(stage: Stage, name: string): Promise<string> {
  const room = fresh(name);
  await stage.topic(`chat:${room}`);
  return room;
}

const shows = (page: Page, count: number): Promise<void> => has(page, "data-count", String(count));

const write = async (page: Page, text: string): Promise<void> => {
  await page.getByLabel("Message", { exact: true }).fill(text);
  await page.getByLabel("Message", { exact: true }).press("Enter");
};

test("messages arrive exactly once and in order across disconnects and a killed daemon", async ({ seats, stage }) => {
  const room = await newRoom(stage, "storm");
  const each = 25 * SIZE;
  const ana = await seats.seat("ana");
  const ben = await seats.seat("ben");
  const pages = [await ana.open(`/chat/?room=${room}`), await ana.open(`/chat/?room=${room}`), await ben.open(`/chat/?room=${room}`)];
  const writing = Promise.all(
    pages.map(async (page, i) => {
      for (let n = 0; n < each; n++) await write(page, `writer ${i} number ${n}`);
    }),
  );
  const stored = (n: number): Promise<void> => poll(async () => (await stage.query("select count(*)::int as n from messages where room = $1", [room]))[0]?.n).toBeGreaterThanOrEqual(n);
  await stored(each * 0.3);
  ana.wire.cut();
  await stored(each * 0.6);
  ben.wire.freeze();
  await stage.crash();
  ben.wire.restore();
  ben.wire.cut();
  await stage.crash();
  await writing;
  for (const page of pages) await isStored(page);
  const rows = await stage.query<{ body: string }>("select body from messages where room = $1 order by id", [room]);
  expect(rows.length).toBe(each * 3);
  expect(new Set(rows.map((row) => row.body)).size, "each body once").toBe(each * 3);
  const late = await (await seats.seat("cleo")).open(`/chat/?room=${room}`);
  await shows(late, each * 3);
  await agree(late, ...pages);
  for (let i = 0; i < 3; i++)
    expect(rows.map((row) => row.body).filter((body) => body.startsWith(`writer ${i} `)), "each writer's own order").toEqual(
      Array.from({ length: each }, (_, n) => `writer ${i} number ${n}`),
    );
});

test("an insert whose answer is lost creates one message", async ({ seats, stage }) => {
  const room = await newRoom(stage, "lost");
  const ana = await seats.seat("ana");
  const page = await ana.open(`/chat/?room=${room}`);
  let dropped = 0;
  await page.route("**/rest/v1/messages**", async (route) => {
    if (route.request().method() !== "POST" || dropped) return route.continue();
    dropped += 1;
    await route.fetch(); // The row is committed; the page never hears of it.
    await route.abort("connectionreset");
  });
  await write(page, "only once");
  await expect(page.locator(".message[data-state=stored] .body")).toHaveText(["only once"]);
  await isStored(page);
  expect(dropped).toBe(1);
  expect(await stage.query("select body from messages where room = $1", [room])).toEqual([{ body: "only once" }]);
});

test("a row that arrives before the answer of its insert is one message", async ({ seats, stage }) => {
  const room = await newRoom(stage, "early");
  const page = await (await seats.seat("ana")).open(`/chat/?room=${room}`);
  let early = 0;
  await page.route("**/rest/v1/messages**", async (route) => {
    if (route.request().method() !== "POST") return route.continue();
    const response = await route.fetch();
    await expect(page.locator(".message[data-state=stored]")).toHaveCount(1);
    early += 1;
    await route.fulfill({ response });
  });
  await write(page, "already here");
  await poll(() => early).toBe(1);
  await isStored(page);
  await isDrawn(page);
  expect(await page.locator(".message .body").allTextContents()).toEqual(["already here"]);
});

test("fast toggles in two tabs end in the state of the table", async ({ seats, stage }) => {
  const room = await newRoom(stage, "react");
  const [message] = await stage.query<{ id: string }>("insert into messages (room, author, client_id, body) values ($1, 'ben', gen_random_uuid(), 'like this') returning id", [room]);
  const [ana, cleo] = [await seats.seat("ana"), await seats.seat("cleo")];
  const tabs = [await ana.open(`/chat/?room=${room}`), await ana.open(`/chat/?room=${room}`)];
  for (const page of tabs) await shows(page, 1);
  const toggle = (page: Page): Promise<void> =>
    page.evaluate(() => {
      for (let i = 0; i < 5; i++) document.querySelector<HTMLButtonElement>('.tools button[title="React 👍"]')?.click();
    });
  const table = async (): Promise<boolean> => (await stage.query("select 1 from reactions where room = $1 and user_id = 'ana' and emoji = '👍'", [room])).length === 1;
  // Changes arrive in the order of their commits: a tab that shows this reaction has applied every toggle before it.
  const mark = (emoji: string): Promise<unknown> => stage.query("insert into reactions (message_id, room, user_id, emoji) values ($1, $2, 'ben', $3)", [message!.id, room, emoji]);
  const settled = async (emoji: string): Promise<void> => {
    for (const page of tabs) await isStored(page);
    await mark(emoji);
    const late = await cleo.open(`/chat/?room=${room}`);
    await expect(late.locator(".reactions button").filter({ hasText: emoji })).toHaveCount(1);
    await agree(late, ...tabs);
    await late.close();
  };
  await Promise.all(tabs.map(toggle));
  await settled("👀");
  // And once more from a known state: an odd number of clicks turns it around.
  const before = await table();
  await toggle(tabs[0]!);
  await settled("❤️");
  expect(await table()).toBe(!before);
});

test("typing ends when its tab closes, and five seconds after a tab that became silent", async ({ seats, stage }) => {
  const room = await newRoom(stage, "typing");
  const [ana, ben] = [await seats.seat("ana"), await seats.seat("ben")];
  await ben.context.clock.install();
  const b = await ben.open(`/chat/?room=${room}`);
  const type = async (): Promise<Page> => {
    const page = await ana.open(`/chat/?room=${room}`);
    await page.getByLabel("Message", { exact: true }).pressSequentially("hello");
    await expect(b.locator(".typing")).toHaveText("Ana is typing…");
    return page;
  };
  await (await type()).close();
  await expect(b.locator(".typing")).toHaveText("");
  await type();
  ana.wire.freeze(); // No leave and no last word: the network lost its route.
  await b.clock.fastForward(5000);
  await isDrawn(b);
  expect(await b.locator(".typing").textContent()).toBe("");
});

test("a stranger gets no row and no channel, and sees the reason", async ({ seats, stage }) => {
  const room = await newRoom(stage, "private");
  await stage.query("insert into messages (room, author, client_id, body) values ($1, 'ana', gen_random_uuid(), 'secret')", [room]);
  const [eve, ana] = [await seats.seat("eve"), await seats.seat("ana")];
  const theirs = await eve.open(`/chat/?room=${room}`, { live: false });
  await has(theirs, "data-live", "refused");
  await expect(theirs.locator(".notice.problem")).toContainText("not a member");
  await expect(theirs.locator(".message")).toHaveCount(0);
  // By hand, past the page: rows and writes are refused by the database itself.
  const headers = { authorization: `Bearer ${stage.token({ sub: "eve" })}` };
  const read = await eve.context.request.get(`${eve.origin}/rest/v1/messages?room=eq.${room}`, { headers });
  expect(await read.json()).toEqual([]);
  const insert = await eve.context.request.post(`${eve.origin}/rest/v1/messages`, { headers, data: { room, client_id: "5f0c8a51-5c6f-4f2e-9a3b-0d8a7cf7d001", body: "hi" } });
  expect(insert.status()).toBe(403);
  // A forged author is no column that a person may write.
  const forged = await ana.context.request.post(`${ana.origin}/rest/v1/messages`, {
    headers: { authorization: `Bearer ${stage.token({ sub: "ana" })}` },
    data: { room, author: "ben", client_id: "5f0c8a51-5c6f-4f2e-9a3b-0d8a7cf7d002", body: "I am Ben" },
  });
  expect(forged.status()).toBe(403);
  expect(await stage.query("select body from messages where room = $1", [room])).toEqual([{ body: "secret" }]);
});

test("edits and deletes made offline arrive, and missed messages are marked", async ({ seats, stage }) => {
  const room = await newRoom(stage, "away");
  const [ana, ben, cleo] = [await seats.seat("ana"), await seats.seat("ben"), await seats.seat("cleo")];
  const [a, b] = [await ana.open(`/chat/?room=${room}`), await ben.open(`/chat/?room=${room}`)];
  await write(a, "first");
  await write(a, "second");
  await expect(b.locator(".message[data-state=stored]")).toHaveCount(2);
  ana.wire.down();
  await has(a, "data-live", "down");
  await a.locator(".message").nth(0).hover();
  await a.locator(".message").nth(0).getByLabel("Edit", { exact: true }).click();
  await a.getByLabel("Edit message").fill("first, corrected");
  await a.getByLabel("Edit message").press("Enter");
  await a.locator(".message").nth(1).hover();
  await a.locator(".message").nth(1).getByLabel("Delete").click();
  await write(a, "third, from the train");
  // 500 messages pass meanwhile.
  await stage.query("insert into messages (room, author, client_id, body) select $1, 'ben', gen_random_uuid(), 'missed ' || n from generate_series(1, 500) n", [room]);
  await shows(b, 502);
  ana.wire.restore();
  await isStored(a);
  const late = await cleo.open(`/chat/?room=${room}`);
  await shows(late, 503);
  await agree(late, a, b);
  const kept = await stage.query<{ body: string; deleted: boolean }>("select body, deleted_at is not null as deleted from messages where room = $1 and author = 'ana' order by id", [room]);
  expect(kept).toEqual([
    { body: "first, corrected", deleted: false },
    { body: "-", deleted: true },
    { body: "third, from the train", deleted: false },
  ]);
  // Scrolling to the top shows older ones, and the visible ones stay in place.
  for (const shown of [200, 400]) {
    await expect(a.locator(".message")).toHaveCount(shown);
    await a.locator(".scroll").evaluate((list) => list.scrollTo(0, 0));
  }
  await expect(a.locator(".message")).toHaveCount(503);
  await expect(a.locator(".gap")).toHaveText("500 messages while you were away");
});

test("a removed member receives nothing more", async ({ seats, stage }) => {
  const room = await newRoom(stage, "removed");
  const [ana, ben, cleo] = [await seats.seat("ana"), await seats.seat("ben"), await seats.seat("cleo")];
  const [a, b, c] = [await ana.open(`/chat/?room=${room}`), await ben.open(`/chat/?room=${room}`), await cleo.open(`/chat/?room=${room}`)];
  await write(a, "before");
  await expect(b.locator(".message[data-state=stored]")).toHaveCount(1);
  await stage.query("delete from members where topic = $1 and user_id = 'ben'", [`chat:${room}`]);
  await write(a, "after");
  // Cleo has the row, so it was delivered to everybody who gets it.
  await expect(c.locator(".message[data-state=stored]")).toHaveCount(2);
  await write(b, "still here?");
  await expect(b.locator(".message[data-state=failed]")).toContainText("not permitted");
  await expect(b.locator(".message[data-state=stored] .body")).toHaveText(["before"]);
});

test("HTML is shown as text, and a message that is too long is refused with its length", async ({ seats, stage }) => {
  const room = await newRoom(stage, "text");
  const ana = await seats.seat("ana");
  const page = await ana.open(`/chat/?room=${room}`);
  await write(page, "<img src=x onerror=alert(1)> & <b>bold</b>");
  await expect(page.locator(".message .body")).toContainText("<img src=x onerror=alert(1)>");
  await page.getByLabel("Message", { exact: true }).fill("x".repeat(20_001));
  await page.getByLabel("Message", { exact: true }).press("Enter");
  await expect(page.locator(".notice.problem")).toContainText("20001");
  await expect(page.getByLabel("Message", { exact: true })).toHaveValue(/x{20001}/);
});
