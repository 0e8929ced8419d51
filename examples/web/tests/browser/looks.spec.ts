// Every page with content in light and dark, on a desk and on a phone of 320 px: no serious finding of axe, and nothing
// wider than the screen. Signing in by keyboard. `PICTURES=FOLDER` keeps what was seen: the pictures of the README.
import { createRequire } from "node:module";
import { join } from "node:path";
import { findings, type Rules } from "./harness/axe.ts";
import { SCENES } from "./harness/scenes.ts";
import { expect, fresh, isDrawn, isLive, test } from "./harness/stage.ts";

const AXE = createRequire(import.meta.url).resolve("axe-core/axe.min.js");
const PICTURES = process.env.PICTURES;
const MEDIA = { permissions: ["camera", "microphone"] };

/** What axe looks at: everything on the desk, the colours again in dark, and the rest again on the narrowest phone. */
const RULES: Record<string, Rules> = { "desktop light": "all", "desktop dark": "colours", "narrow light": "others" };

for (const [name, scene] of Object.entries(SCENES))
  test(`${name} is accessible and fits a phone, in light and dark`, async ({ seats: stage }) => {
    // axe is put in by the browser's own means, past the content security policy of the page.
    const ana = await stage.seat("ana", { ...MEDIA, viewport: { width: 1180, height: 760 }, bypassCSP: true });
    const page = await scene({ stage, ana, ben: await stage.seat("ben", MEDIA), cleo: await stage.seat("cleo", MEDIA) });
    for (const colorScheme of ["light", "dark"] as const) {
      await page.emulateMedia({ colorScheme });
      for (const [size, width, height] of [["desktop", 1180, 760], ["phone", 390, 780], ["narrow", 320, 640]] as const) {
        await page.setViewportSize({ width, height });
        await isDrawn(page);
        const where = `${colorScheme}, ${width} px`;
        expect(await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth), where).toBeLessThanOrEqual(0);
        const rules = RULES[`${size} ${colorScheme}`];
        if (rules) expect(await findings(page, AXE, rules), where).toEqual([]);
        if (PICTURES && name !== "start" && size !== "narrow") await page.screenshot({ path: join(PICTURES, `${name}-${size}-${colorScheme}.png`) });
      }
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
