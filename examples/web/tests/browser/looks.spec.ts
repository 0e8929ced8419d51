// Every page in light and dark, on a desk and on a phone of 320 px: no serious finding of axe, nothing wider than the
// screen, everything by keyboard reachable, and signing in.
import { createRequire } from "node:module";
import type { Page } from "@playwright/test";
import { expect, fresh, isLive, test } from "./harness/stage.ts";

const AXE = createRequire(import.meta.url).resolve("axe-core/axe.min.js");
const PAGES = ["", "chat/", "call/", "editor/", "board/", "analytics/", "console/"];

interface Finding {
  id: string;
  impact: string;
  nodes: { target: string[]; failureSummary?: string }[];
}

async function findings(page: Page): Promise<string[]> {
  const found = await page.evaluate(async () => {
    const { axe } = window as unknown as { axe: { run: (options: object) => Promise<{ violations: Finding[] }> } };
    return (await axe.run({ resultTypes: ["violations"] })).violations;
  });
  return found.filter(({ impact }) => impact === "serious" || impact === "critical").map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.target.join(" ")).join(", ")}`);
}

for (const scheme of ["light", "dark"] as const)
  test(`every page is accessible and fits a phone, ${scheme}`, async ({ seats }) => {
    // axe is put in by the browser's own means, past the content security policy of the page.
    const ana = await seats.seat("ana", { colorScheme: scheme, viewport: { width: 320, height: 640 }, bypassCSP: true });
    const ben = await seats.seat("ben");
    await ben.open("/chat/");
    for (const path of PAGES) {
      const page = await ana.open(`/${path}`);
      await page.addScriptTag({ path: AXE });
      for (const width of [320, 1100]) {
        await page.setViewportSize({ width, height: 640 });
        expect(await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth), `/${path} at ${width} px`).toBeLessThanOrEqual(0);
        expect(await findings(page), `/${path} at ${width} px`).toEqual([]);
      }
      await page.close();
    }
  });

test("a person signs in by keyboard, and signs out", async ({ seats, stage }) => {
  const room = fresh("keyboard");
  await stage.topic(`chat:${room}`);
  const signedOut = await seats.seat("ana");
  await signedOut.context.clearCookies();
  const page = await signedOut.open(`/chat/?room=${room}`, { live: false });
  const dialog = page.getByRole("dialog", { name: "Who are you?" });
  await expect(dialog).toBeVisible();
  await page.keyboard.press("Escape");
  await expect(dialog).toBeVisible();
  await dialog.getByRole("button", { name: "Ben" }).focus();
  await page.keyboard.press("Enter");
  await isLive(page);
  await page.getByLabel("Message", { exact: true }).fill("by keyboard");
  await page.keyboard.press("Enter");
  await expect(page.locator(".message[data-state=stored] .body").last()).toContainText("by keyboard");
  await page.getByRole("button", { name: "Ben: sign out" }).click();
  await expect(dialog).toBeVisible();
});

test("the input stays on the screen with many messages", async ({ seats, stage }) => {
  const room = fresh("long");
  await stage.topic(`chat:${room}`);
  await stage.query("insert into public.messages (room, author, client_id, body) select $1, 'ben', gen_random_uuid(), repeat('a long one ', 20) from generate_series(1, 60)", [room]);
  const ana = await seats.seat("ana");
  for (const [width, height] of [[390, 780], [1100, 640]] as const)
    for (const [path, control] of [[`chat/?room=${room}`, ".write"], ["board/", ".foot"], ["editor/", ".page"]] as const) {
      const page = await ana.open(`/${path}`);
      await page.setViewportSize({ width, height });
      if (path.startsWith("chat")) await expect(page.locator("html")).toHaveAttribute("data-count", "60");
      await expect(page.locator(control)).toBeInViewport({ ratio: 1 });
      expect(await page.evaluate(() => document.documentElement.scrollHeight - document.documentElement.clientHeight), `/${path} at ${width} px`).toBeLessThanOrEqual(0);
      await page.close();
    }
});
