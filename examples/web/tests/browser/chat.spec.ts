import type { Page } from "@playwright/test";
import { expect, isLive, SIZE, test } from "./harness/stage.ts";

const write = async (page: Page, text: string): Promise<void> => {
  await page.getByLabel("Message", { exact: true }).fill(text);
  await page.getByLabel("Message", { exact: true }).press("Enter");
};

test("messages arrive exactly once and in order across disconnects and a killed daemon", async ({ seats, stage }) => {
  await stage.topic("chat:storm");
  const each = 40 * SIZE;
  const ana = await seats.seat("ana");
  const ben = await seats.seat("ben");
  const pages = [await ana.open("/chat/?room=storm"), await ana.open("/chat/?room=storm"), await ben.open("/chat/?room=storm")];
  const writing = Promise.all(
    pages.map(async (page, i) => {
      for (let n = 0; n < each; n++) await write(page, `writer ${i} number ${n}`);
    }),
  );
  const stored = (n: number): Promise<void> =>
    expect.poll(async () => (await stage.query("select count(*)::int as n from messages where room = 'storm'"))[0]?.n, { timeout: 60_000 }).toBeGreaterThanOrEqual(n);
  await stored(each * 0.3);
  ana.wire.cut();
  await stored(each * 0.6);
  ben.wire.freeze();
  await stage.crash();
  ben.wire.restore();
  ben.wire.cut();
  await stage.crash();
  await writing;
  await stored(each * 3);
  for (const page of pages) {
    await expect(page.locator("html")).toHaveAttribute("data-count", String(each * 3), { timeout: 30_000 });
    await expect(page.locator("html")).toHaveAttribute("data-sending", "0");
    await isLive(page);
  }
  const hashes = await Promise.all(pages.map((page) => page.locator("html").getAttribute("data-hash")));
  expect(new Set(hashes).size, "three pages show the same list").toBe(1);
  const rows = await stage.query<{ body: string }>("select body from messages where room = 'storm' order by id");
  expect(new Set(rows.map((row) => row.body)).size, "each body once").toBe(each * 3);
  for (let i = 0; i < 3; i++)
    expect(rows.map((row) => row.body).filter((body) => body.startsWith(`writer ${i} `)), "each writer's own order").toEqual(
      Array.from({ length: each }, (_, n) => `writer ${i} number ${n}`),
    );
});

test("an insert whose answer is lost creates one message", async ({ seats, stage }) => {
  await stage.topic("chat:lost");
  const ana = await seats.seat("ana");
  const page = await ana.open("/chat/?room=lost");
  let dropped = 0;
  await page.route("**/rest/v1/messages**", async (route) => {
    if (route.request().method() !== "POST" || dropped) return route.continue();
    dropped += 1;
    await route.fetch(); // The row is committed; the page never hears of it.
    await route.abort("connectionreset");
  });
  await write(page, "only once");
  await expect(page.locator(".message[data-state=stored] .body")).toHaveText(["only once"]);
  await expect(page.locator("html")).toHaveAttribute("data-sending", "0");
  expect(dropped).toBe(1);
  expect(await stage.query("select body from messages where room = 'lost'")).toEqual([{ body: "only once" }]);
});

test("fast toggles in two tabs end in the state of the table", async ({ seats, stage }) => {
  await stage.topic("chat:react");
  await stage.query("insert into messages (room, author, client_id, body) values ('react', 'ben', gen_random_uuid(), 'like this')");
  const ana = await seats.seat("ana");
  const tabs = [await ana.open("/chat/?room=react"), await ana.open("/chat/?room=react")];
  const toggle = (page: Page): Promise<void> =>
    page.evaluate(() => {
      for (let i = 0; i < 5; i++) document.querySelector<HTMLButtonElement>('.tools button[title="React 🎉"], .tools button[title="React 👍"]')?.click();
    });
  await Promise.all(tabs.map(toggle));
  // Both tabs and the table agree in the end, whatever the order of the two was.
  await expect
    .poll(async () => {
      const rows = await stage.query<{ emoji: string }>("select emoji from reactions where room = 'react'");
      const table = rows.map((row) => row.emoji).join(" ");
      const shown = await Promise.all(tabs.map((page) => page.locator(".reactions button").allInnerTexts()));
      return shown.every((texts) => texts.map((text) => text.split(" ")[0]).join(" ") === table);
    })
    .toBe(true);
  // And once more from a known state: an odd number of clicks turns it around.
  const before = (await stage.query("select 1 from reactions where room = 'react'")).length;
  await toggle(tabs[0]!);
  await expect.poll(async () => (await stage.query("select 1 from reactions where room = 'react'")).length).toBe(1 - before);
  for (const page of tabs) await expect(page.locator(".reactions button")).toHaveCount(1 - before);
});

test("typing of a closed tab ends within five seconds", async ({ seats, stage }) => {
  await stage.topic("chat:typing");
  const [ana, ben] = [await seats.seat("ana"), await seats.seat("ben")];
  const [a, b] = [await ana.open("/chat/?room=typing"), await ben.open("/chat/?room=typing")];
  await a.getByLabel("Message", { exact: true }).pressSequentially("hello");
  await expect(b.locator(".typing")).toHaveText("Ana is typing…");
  ana.wire.down(); // No leave and no last word: the tab's machine is gone.
  await expect(b.locator(".typing")).toHaveText("", { timeout: 6000 });
});

test("a stranger gets no row and no channel, and sees the reason", async ({ seats, stage }) => {
  await stage.topic("chat:private");
  await stage.query("insert into messages (room, author, client_id, body) values ('private', 'ana', gen_random_uuid(), 'secret')");
  const [eve, ana] = [await seats.seat("eve"), await seats.seat("ana")];
  const theirs = await eve.open("/chat/?room=private", { live: false });
  await expect(theirs.locator("html")).toHaveAttribute("data-live", "refused", { timeout: 20_000 });
  await expect(theirs.locator(".notice.problem")).toContainText("not a member");
  await expect(theirs.locator(".message")).toHaveCount(0);
  // By hand, past the page: rows and writes are refused by the database itself.
  const headers = { authorization: `Bearer ${stage.token({ sub: "eve" })}` };
  const read = await eve.context.request.get(`${eve.origin}/rest/v1/messages?room=eq.private`, { headers });
  expect(await read.json()).toEqual([]);
  const insert = await eve.context.request.post(`${eve.origin}/rest/v1/messages`, { headers, data: { room: "private", client_id: "5f0c8a51-5c6f-4f2e-9a3b-0d8a7cf7d001", body: "hi" } });
  expect(insert.status()).toBe(403);
  // A forged author is no column that a person may write.
  const forged = await ana.context.request.post(`${ana.origin}/rest/v1/messages`, {
    headers: { authorization: `Bearer ${stage.token({ sub: "ana" })}` },
    data: { room: "private", author: "ben", client_id: "5f0c8a51-5c6f-4f2e-9a3b-0d8a7cf7d002", body: "I am Ben" },
  });
  expect(forged.status()).toBe(403);
  expect(await stage.query("select body from messages where room = 'private'")).toEqual([{ body: "secret" }]);
});

test("edits and deletes made offline arrive, and missed messages are marked", async ({ seats, stage }) => {
  await stage.topic("chat:away");
  const [ana, ben] = [await seats.seat("ana"), await seats.seat("ben")];
  const [a, b] = [await ana.open("/chat/?room=away"), await ben.open("/chat/?room=away")];
  await write(a, "first");
  await write(a, "second");
  await expect(b.locator(".message[data-state=stored]")).toHaveCount(2);
  ana.wire.down();
  await a.locator(".message").nth(0).hover();
  await a.locator(".message").nth(0).getByLabel("Edit", { exact: true }).click();
  await a.getByLabel("Edit message").fill("first, corrected");
  await a.getByLabel("Edit message").press("Enter");
  await a.locator(".message").nth(1).hover();
  await a.locator(".message").nth(1).getByLabel("Delete").click();
  await write(a, "third, from the train");
  // 500 messages pass meanwhile.
  await stage.query("insert into messages (room, author, client_id, body) select 'away', 'ben', gen_random_uuid(), 'missed ' || n from generate_series(1, 500) n");
  await expect(b.locator("html")).toHaveAttribute("data-count", "502");
  ana.wire.restore();
  for (const page of [a, b]) {
    await expect(page.locator("html")).toHaveAttribute("data-count", "503", { timeout: 30_000 });
    await expect(page.locator("html")).toHaveAttribute("data-sending", "0", { timeout: 15_000 });
  }
  expect(await a.locator("html").getAttribute("data-hash")).toBe(await b.locator("html").getAttribute("data-hash"));
  const kept = await stage.query<{ body: string; deleted: boolean }>("select body, deleted_at is not null as deleted from messages where room = 'away' and author = 'ana' order by id");
  expect(kept).toEqual([
    { body: "first, corrected", deleted: false },
    { body: "-", deleted: true },
    { body: "third, from the train", deleted: false },
  ]);
  // Who scrolls to the top sees older ones; what was read stays in place.
  for (const shown of [200, 400]) {
    await expect(a.locator(".message")).toHaveCount(shown);
    await a.locator(".scroll").evaluate((list) => list.scrollTo(0, 0));
  }
  await expect(a.locator(".message")).toHaveCount(503);
  await expect(a.locator(".gap")).toHaveText("500 messages while you were away");
});

test("a removed member receives nothing more", async ({ seats, stage }) => {
  await stage.topic("chat:removed");
  const [ana, ben] = [await seats.seat("ana"), await seats.seat("ben")];
  const [a, b] = [await ana.open("/chat/?room=removed"), await ben.open("/chat/?room=removed")];
  await write(a, "before");
  await expect(b.locator(".message[data-state=stored]")).toHaveCount(1);
  await stage.query("delete from members where topic = 'chat:removed' and user_id = 'ben'");
  await write(a, "after");
  await expect(a.locator(".message[data-state=stored]")).toHaveCount(2);
  await write(b, "still here?");
  await expect(b.locator(".message[data-state=failed]")).toContainText("not permitted");
  await expect(b.locator(".message[data-state=stored] .body")).toHaveText(["before"]);
});

test("HTML is shown as text, and a message that is too long is refused with its length", async ({ seats, stage }) => {
  await stage.topic("chat:text");
  const ana = await seats.seat("ana");
  const page = await ana.open("/chat/?room=text");
  await write(page, "<img src=x onerror=alert(1)> & <b>bold</b>");
  await expect(page.locator(".message .body")).toContainText("<img src=x onerror=alert(1)>");
  await page.getByLabel("Message", { exact: true }).fill("x".repeat(20_001));
  await page.getByLabel("Message", { exact: true }).press("Enter");
  await expect(page.locator(".notice.problem")).toContainText("20001");
  await expect(page.getByLabel("Message", { exact: true })).toHaveValue(/x{20001}/);
});
