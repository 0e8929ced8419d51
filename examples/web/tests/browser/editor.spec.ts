import type { Page, Request } from "@playwright/test";
import * as Y from "yjs";
import { hash } from "../../lib/ids.ts";
import { expect, fresh, isLive, isStored, poll, SIZE, test, type Stage } from "./harness/stage.ts";
import { has, html } from "./harness/wait.ts";

async function newDocument(stage: Stage, name: string, members?: Record<string, "reader" | "writer">): Promise<string> {
  const id = fresh(name);
  await stage.query("insert into documents (id, title) values ($1, $2)", [id, name]);
  await stage.topic(`doc:${id}`, members);
  return id;
}

/** The text that the table alone gives, made in Node. */
async function rebuilt(stage: Stage, id: string): Promise<string> {
  const doc = new Y.Doc();
  const [row] = await stage.query<{ snapshot: Buffer | null; snapshot_seq: string }>("select snapshot, snapshot_seq from documents where id = $1", [id]);
  if (row?.snapshot) Y.applyUpdate(doc, row.snapshot);
  for (const { update } of await stage.query<{ update: Buffer }>("select update from document_updates where doc = $1 order by seq", [id])) Y.applyUpdate(doc, update);
  return doc.getText("text").toString();
}

const shows = (page: Page, text: string): Promise<void> => has(page, "data-hash", String(hash(text)));

async function write(page: Page, text: string, where: "Home" | "End" = "End"): Promise<void> {
  await page.locator(".cm-content").focus();
  await page.keyboard.press(`Control+${where}`);
  await page.keyboard.insertText(text);
}

test("texts converge across a disconnect, a reload and a killed daemon", async ({ seats, stage }) => {
  const id = await newDocument(stage, "storm");
  const people = [await seats.seat("ana"), await seats.seat("ben"), await seats.seat("cleo")];
  const pages = await Promise.all(people.map((seat) => seat.open(`/editor/?doc=${id}`)));
  let done = false;
  const written: string[] = [];
  let reloading = false;
  const writer = async (page: Page, who: string): Promise<void> => {
    for (let n = 0; !done; n++) {
      if (who === "c" && reloading) {
        reloading = false;
        await page.reload();
        await isLive(page);
      }
      const word = `[${who}${n}]`;
      await write(page, word, n % 3 ? "End" : "Home");
      written.push(word);
    }
  };
  const writing = Promise.all(pages.map((page, i) => writer(page, "abc"[i]!)));
  const wrote = (n: number): Promise<void> => poll(() => written.length).toBeGreaterThan(n);
  await wrote(15);
  people[1]!.wire.down();
  await wrote(written.length + 15);
  await stage.crash();
  people[1]!.wire.restore();
  await wrote(written.length + 10);
  reloading = true;
  await poll(() => reloading).toBe(false);
  await wrote(written.length + 20 * SIZE);
  done = true;
  await writing;
  for (const page of pages) {
    await isLive(page);
    await isStored(page);
  }
  // The table has it all when every page shows what the table alone gives.
  await poll(async () => {
      const wanted = String(hash(await rebuilt(stage, id)));
      return (await Promise.all(pages.map((page) => html(page).getAttribute("data-hash")))).every((shown) => shown === wanted);
    })
    .toBe(true);
  const text = await rebuilt(stage, id);
  const found = text.match(/\[[abc]\d+\]/g) ?? [];
  expect([...found].sort(), "every word once and whole").toEqual([...written].sort());
  const late = await people[2]!.open(`/editor/?doc=${id}`);
  await shows(late, text);
});

test("undo affects own input only, and cursors of both tabs are shown", async ({ seats, stage }) => {
  const id = await newDocument(stage, "undo");
  const [ana, ben] = [await seats.seat("ana"), await seats.seat("ben")];
  const [a, b] = [await ana.open(`/editor/?doc=${id}`), await ben.open(`/editor/?doc=${id}`)];
  await write(a, "Ana was here. ");
  await shows(b, "Ana was here. ");
  await write(b, "Ben too. ");
  await shows(a, "Ana was here. Ben too. ");
  await a.locator(".cm-content").focus();
  await a.keyboard.press("Control+z");
  for (const page of [a, b]) await shows(page, "Ben too. ");
  const second = await ana.open(`/editor/?doc=${id}`);
  await second.locator(".cm-content").focus();
  await second.keyboard.press("Control+End");
  await has(b, "data-cursors", "2");
  await second.close();
  await has(b, "data-cursors", "1");
});

test("concurrent compaction has one winner and loses nothing", async ({ seats, stage }) => {
  const id = await newDocument(stage, "compact");
  const doc = new Y.Doc();
  const updates: Buffer[] = [];
  doc.on("update", (update: Uint8Array) => updates.push(Buffer.from(update)));
  for (let n = 0; n < 250; n++) doc.getText("text").insert(doc.getText("text").length, `${n} `);
  for (const [n, update] of updates.entries())
    await stage.query("insert into document_updates (doc, update, author, at) values ($1, $2, 'ana', now() - interval '1 hour' * $3)", [id, update, n < 249 ? 1 : 0]);
  const [ana, ben] = [await seats.seat("ana"), await seats.seat("ben")];
  // Both have read all rows before the first of them may write the snapshot.
  const compacting: (() => void)[] = [];
  const answers: unknown[][] = [];
  const isCompaction = (request: Request): boolean => request.method() === "PATCH" && request.url().includes("/rest/v1/documents?");
  for (const { context } of [ana, ben]) {
    await context.route("**/rest/v1/documents?*", async (route) => {
      if (isCompaction(route.request())) await new Promise<void>((resolve) => compacting.push(resolve) === 2 && compacting.forEach((go) => go()));
      await route.continue();
    });
    context.on("response", async (response) => isCompaction(response.request()) && answers.push((await response.json()) as unknown[]));
  }
  const pages = await Promise.all([ana.open(`/editor/?doc=${id}`), ben.open(`/editor/?doc=${id}`)]);
  await poll(() => answers.map((changed) => changed.length).sort()).toEqual([0, 1]);
  await poll(async () => (await stage.query<{ n: number }>("select count(*)::int as n from document_updates where doc = $1", [id]))[0]?.n).toBe(1);
  await write(pages[0]!, "the end");
  await isStored(pages[0]!);
  const text = `${doc.getText("text").toString()}the end`;
  await poll(() => rebuilt(stage, id)).toBe(text);
  const cleo = await seats.seat("cleo");
  for (const page of [...pages, await cleo.open(`/editor/?doc=${id}`)]) await shows(page, text);
});

test("a reader sees the text and cannot change it", async ({ seats, stage }) => {
  const id = await newDocument(stage, "reader", { ana: "writer", dan: "reader" });
  const [ana, dan] = [await seats.seat("ana"), await seats.seat("dan")];
  const [a, d] = [await ana.open(`/editor/?doc=${id}`), await dan.open(`/editor/?doc=${id}`)];
  await write(a, "for your eyes");
  await shows(d, "for your eyes");
  await has(d, "data-cursors", "1");
  await expect(d.locator(".cm-content")).toHaveAttribute("contenteditable", "false");
  await expect(d.locator(".saved")).toHaveText("You may only read.");
  const insert = await dan.context.request.post(`${dan.origin}/rest/v1/document_updates`, { headers: { authorization: `Bearer ${stage.token({ sub: "dan" })}` }, data: { doc: id, update: "\\x0000" } });
  expect(insert.status()).toBe(403);
});

test("a paste of two megabytes arrives, one of more than three is refused with a reason", async ({ seats, stage }) => {
  const id = await newDocument(stage, "paste");
  const [ana, ben] = [await seats.seat("ana"), await seats.seat("ben")];
  const [a, b] = [await ana.open(`/editor/?doc=${id}`), await ben.open(`/editor/?doc=${id}`)];
  const paste = (page: Page, length: number): Promise<void> =>
    page.evaluate((size) => {
      const data = new DataTransfer();
      data.setData("text/plain", "lorem ipsum\n".repeat(size / 12));
      document.querySelector(".cm-content")!.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true }));
    }, length);
  await paste(a, 3_000_012);
  await expect(a.locator(".notice.problem")).toContainText("3,000,000");
  await has(a, "data-count", "0");
  await paste(a, 2_000_004);
  await isStored(a);
  await has(b, "data-count", "2000004");
  expect(await html(b).getAttribute("data-hash")).toBe(await html(a).getAttribute("data-hash"));
  // A malformed update, in the table and on the channel, is ignored.
  await stage.query("insert into document_updates (doc, update, author) values ($1, '\\x0102', 'ana')", [id]);
  await stage.query("select realtime.send_binary('\\xff00ff', 'operation', $1, true)", [`doc:${id}`]);
  await b.reload();
  await isLive(b);
  await has(b, "data-count", "2000004");
});
