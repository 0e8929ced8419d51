// Every screen, full and empty, in light and dark, on a desk and on phones of 390 and 320 px: no serious finding of axe,
// and nothing wider than the screen. `npm run pictures` keeps what was seen, also the pictures of the README.
import type { Page } from "@playwright/test";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { Stage, expect, findings, isLive, overflow, test } from "./stage.ts";

const PICTURES = process.env.PICTURES;
const DOCS = fileURLToPath(new URL("../../../../docs/pictures", import.meta.url));
const SCHEMES = ["light", "dark"] as const;
const DESK = { width: 1440, height: 900 };
const PHONE = { width: 390, height: 844 };
const NARROW = { width: 320, height: 640 };

interface Screen {
  name: string;
  path: string;
  /** What is there once the screen is. */
  ready: string;
  /** What a person does there before it is looked at. */
  act?: (page: Page) => Promise<void>;
}

/**
 * Colours do not depend on the width, nor the structure on the colours: axe looks at everything on the desk, at the
 * colours again in dark, and at the rest again on a phone.
 */
async function look(page: Page, name: string): Promise<void> {
  for (const size of [DESK, PHONE, NARROW]) {
    await page.setViewportSize(size);
    for (const colorScheme of SCHEMES) {
      await page.emulateMedia({ colorScheme });
      await page.evaluate(() => new Promise(requestAnimationFrame));
      const where = `${name} at ${size.width} px, ${colorScheme}`;
      if (colorScheme === "light") expect(await overflow(page), where).toBeLessThanOrEqual(0);
      const rules = size === DESK ? (colorScheme === "light" ? "all" : "colours") : size === PHONE && colorScheme === "light" ? "others" : null;
      if (rules) expect(await findings(page, rules), where).toEqual([]);
      if (PICTURES && size !== NARROW) await page.screenshot({ path: join(PICTURES, `${name}-${size.width}-${colorScheme}.png`), fullPage: true });
    }
  }
  await page.setViewportSize(DESK);
}

async function lookAt(page: Page, home: string, screens: readonly Screen[]): Promise<void> {
  for (const { name, path, ready, act } of screens)
    await test.step(name, async () => {
      await page.goto(home + path);
      await page.locator(ready).first().waitFor();
      // Without a connection the screen is greyed, and its contrast is not the one of the design.
      await isLive(page);
      await act?.(page);
      if (name.startsWith("why")) await expect(page.locator("main"), "times are shown like all others").not.toContainText(/\dT\d\d:\d\d:\d\d/);
      await look(page, name);
    });
}

test("every screen is accessible and fits a phone", async ({ seats }) => {
  // Some forty screens, each searched by axe three times.
  test.slow();
  const asked = await seats.request("plan.choose", { input: { report: "weekly", plans: ["small", "large"] } });
  await seats.reaches(asked, "waiting");
  const chosen = await seats.request("support.triage", { input: { ticket: { subject: "Which desk?" } }, policy: { award: "requester", choose_within: "1h" } });
  const unknown = await seats.request("order.check", { input: { order: 7 }, policy: { attempts_max: 1 } });
  await seats.reaches(unknown, "waiting");
  const failed = await seats.request("report.build", { input: { report: "yearly" }, policy: { attempts_max: 2, backoff: "10ms" } });
  await seats.reaches(failed, "failed");
  const lonely = await seats.request("crystal.ball", { requires: ["foresight", "support.reply"], policy: { rounds_max: 1 } });
  await seats.reaches(lonely, "failed");
  const tree = await seats.request("report.year", { run_at: "2099-01-01T00:00:00Z", budget: { tokens: 20_000, tree: { microdollars: 2000 } } });
  await seats.reaches(await seats.request("support.reply", { parent_id: tree, input: { part: 1 } }), "completed");
  for (const subject of ["Charged twice for one parcel", "The lid is broken", "Where is my refund?", "Please close my account"]) await seats.reaches(await seats.ticket(subject), "completed");
  const ticket = await seats.ticket("Refund of a parcel that never came");
  await seats.reaches(ticket, "completed");
  const running = await seats.request("index.rebuild", { input: { index: "orders" } });
  await seats.reaches(running, "running");

  const { page, origin } = await seats.person("ana", { bypassCSP: true, viewport: DESK }, "admin");
  const press = (name: string | RegExp) => (page: Page): Promise<void> => page.getByRole("button", { name }).first().click();
  await lookAt(page, `${origin}/dashboard/demo`, [
    { name: "first-steps", path: "", ready: ".first-steps", act: (page) => page.getByText("This page is a client like yours").click() },
    { name: "switchboard", path: "", ready: ".first-steps", act: press(/the first steps/) },
    { name: "wall", path: "?wall=1", ready: ".negotiations" },
    { name: "tasks", path: "/tasks", ready: "tbody tr" },
    { name: "tasks-filtered", path: "/tasks?state=failed,canceled&kind=report.*&since=1h", ready: "tbody tr", act: (page) => page.locator("tbody input").first().click() },
    { name: "inspector", path: `/tasks?inspect=${ticket}`, ready: ".inspector .verdict" },
    { name: "columns", path: "/tasks", ready: "tbody tr", act: (page) => page.getByText("Columns", { exact: true }).click() },
    { name: "tasks-grouped", path: "/tasks?group=kind", ready: "tr.group" },
    { name: "durations", path: "/tasks?durations=1", ready: ".histogram" },
    { name: "durations-nothing", path: "/tasks?kind=none&durations=1", ready: ".durations .soft" },
    { name: "tasks-nothing", path: "/tasks?kind=none&until=soon", ready: ".empty" },
    { name: "request", path: "/tasks", ready: "tbody tr", act: press("Request a task…") },
    { name: "bulk", path: "/tasks?state=failed", ready: "tbody tr", act: async (page) => {
      await press("Requeue all found…")(page);
      await page.getByRole("dialog").getByText(/This will requeue/).waitFor();
    } },
    { name: "why", path: `/tasks/${ticket}?if=cheapest`, ready: ".offer" },
    { name: "why-table", path: `/tasks/${ticket}`, ready: ".offer", act: press("Show as table") },
    { name: "why-failed", path: `/tasks/${failed}`, ready: ".rung" },
    { name: "why-running", path: `/tasks/${running}`, ready: ".rung" },
    { name: "why-nobody", path: `/tasks/${lonely}`, ready: ".silent li" },
    { name: "why-choice", path: `/tasks/${chosen}`, ready: ".choice li:nth-child(2)" },
    { name: "cancel", path: `/tasks/${running}`, ready: ".rung", act: press("Cancel…") },
    { name: "timeline", path: `/tasks/${failed}/timeline`, ready: ".timeline li" },
    { name: "events", path: `/tasks/${failed}/events`, ready: ".events li", act: press(/Details of/) },
    { name: "data", path: `/tasks/${ticket}/data`, ready: "pre" },
    { name: "steps", path: `/tasks/${unknown}/steps`, ready: ".step", act: press(/Contents of step/) },
    { name: "steps-empty", path: `/tasks/${ticket}/steps`, ready: ".empty" },
    { name: "parts", path: `/tasks/${tree}/parts`, ready: "table.tree tr:nth-child(2)" },
    { name: "parts-empty", path: `/tasks/${ticket}/parts`, ready: ".empty" },
    { name: "budget", path: `/tasks/${tree}/budget`, ready: ".meter" },
    { name: "question", path: `/tasks/${asked}`, ready: ".notice" },
    { name: "inbox", path: "/inbox", ready: ".cards form" },
    { name: "inbox-empty", path: "/inbox?for=budget", ready: ".empty" },
    { name: "agents", path: "/agents?sort=failed", ready: "tbody tr" },
    { name: "agent", path: "/agents/expert", ready: ".calibration" },
    { name: "lanes", path: "/lanes?minutes=5", ready: ".lane" },
    { name: "lanes-empty", path: "/lanes?to=2026-01-01T00:00:00Z", ready: ".empty" },
    { name: "triggers", path: "/triggers", ready: "tbody tr" },
    { name: "trial", path: "/triggers", ready: "tbody tr", act: async (page) => {
      await press("Try the filter of clerk#1")(page);
      const dialog = page.getByRole("dialog");
      await dialog.getByLabel(/^Row, as JSON/).fill('{"subject": "Invoice 7", "body": "test"}');
      await dialog.getByRole("button", { name: "Try the row" }).click();
      await dialog.getByText("excludes").waitFor();
    } },
    { name: "spend", path: "/spend?days=1", ready: ".hours" },
    { name: "channels", path: "/channels", ready: "tbody tr" },
    { name: "channel", path: "/channels/convoke:demo", ready: "tbody tr" },
    { name: "system", path: "/system", ready: ".spark" },
    { name: "palette", path: "", ready: ".negotiations", act: (page) => page.keyboard.press("Control+k") },
    { name: "help", path: "", ready: ".negotiations", act: (page) => page.keyboard.press("?") },
    { name: "missing", path: "/nowhere/at/all", ready: ".empty" },
  ]);
  const dora = await seats.person("dora", { bypassCSP: true, viewport: DESK }, "operator");
  await seats.pool.query("update convoke.sessions set expires_at = clock_timestamp() + interval '110 seconds' where subject = 'dora'");
  await lookAt(dora.page, `${dora.origin}/dashboard/demo`, [{ name: "session-ends", path: "/inbox", ready: ".cards form", act: (page) => page.getByRole("status").filter({ hasText: "Your session ends at" }).waitFor() }]);
  if (PICTURES)
    for (const [name, path, colorScheme] of [["switchboard", "", "dark"], ["why", `/tasks/${ticket}?if=cheapest`, "light"]] as const) {
      await page.setViewportSize({ width: 1280, height: 720 });
      await page.emulateMedia({ colorScheme });
      await page.goto(`${origin}/dashboard/demo${path}`);
      await page.locator("main .offer-bar").first().waitFor();
      await isLive(page);
      await page.screenshot({ path: join(DOCS, `dashboard-${name}.png`) });
    }
  for (const id of [asked, unknown, running, tree, chosen]) await seats.service(`/v1/tasks/${id}/cancel`, {});
});

test("every screen of a daemon without agents and tasks says what to do", async ({ browser }) => {
  const stage = await Stage.with(browser, {});
  try {
    const { page, origin } = await stage.person("ana", { bypassCSP: true, viewport: DESK }, "admin");
    const home = `${origin}/dashboard/demo`;
    await page.goto(home);
    await expect(page.locator(".empty pre")).toContainText('capabilities = ["echo"]');
    await expect(page.getByRole("region", { name: "No task was requested yet" })).toContainText(`${origin}/v1/tasks`);
    await lookAt(page, home, [
      { name: "empty-switchboard", path: "", ready: ".empty" },
      { name: "empty-wall", path: "?wall=1", ready: ".empty" },
      { name: "empty-tasks", path: "/tasks", ready: ".empty" },
      { name: "empty-inbox", path: "/inbox", ready: ".empty" },
      { name: "empty-agents", path: "/agents", ready: ".empty" },
      { name: "empty-lanes", path: "/lanes", ready: ".empty" },
      { name: "empty-triggers", path: "/triggers", ready: ".empty" },
      { name: "empty-spend", path: "/spend", ready: ".empty" },
      { name: "empty-system", path: "/system", ready: ".spark" },
    ]);
    const crowded = await stage.crowd(45);
    await test.step("a round of many offers", async () => {
      await lookAt(page, home, [{ name: "why-crowd", path: `/tasks/${crowded}`, ready: ".histogram" }]);
      await expect(page.locator(".round")).toContainText(/Of 45 totals, the best is 0\.\d+, half are at most 0\.\d+\./);
      await expect(page.locator(".offers")).toContainText("5 more offers");
      await page.locator(".round .twin").first().getByRole("button", { name: "Show as table" }).click();
      const counts = await page.getByRole("table", { name: "Offers by total" }).locator("td.number").allTextContents();
      expect(counts.reduce((sum, n) => sum + Number(n), 0)).toBe(45);
      await expect(page.getByRole("table", { name: "Offers by total" })).toContainText("(won)");
    });
    const signedOut = await (await browser.newContext({ bypassCSP: true, viewport: DESK })).newPage();
    await signedOut.goto(`${origin}/dashboard/`);
    await signedOut.getByLabel("Sign-in link").waitFor();
    await look(signedOut, "sign-in");
    await signedOut.context().close();
    await page.goto("about:blank");
    await page.goto(stage.link("mallory").replace(stage.daemon.url.origin, origin));
    await page.getByRole("heading", { name: "Sign in as mallory?" }).waitFor();
    await look(page, "sign-in-as");
    expect(stage.errors, "no page threw, and nothing broke the content security policy").toEqual([]);
  } finally {
    await stage.close();
  }
});
