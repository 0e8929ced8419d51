// The list of tasks: the inspector beside it, its columns, and how long tasks took.
import { expect, findings, isLive, overflow, poll, test } from "./stage.ts";

test("the inspector shows the task of the row that the keys or the mouse choose", async ({ seats }) => {
  const first = await seats.request("support.reply", { input: { text: "the first" } });
  const second = await seats.request("support.reply", { input: { text: "the second" } });
  for (const id of [first, second]) await seats.reaches(id, "completed");
  const { page, origin } = await seats.person("ana", { bypassCSP: true, viewport: { width: 1440, height: 900 } });
  await page.goto(`${origin}/dashboard/demo/tasks?kind=support.reply&heartbeat=1000&reconnect=200`);
  await isLive(page);
  await expect(page.locator(`tr[data-row="${second}"]`)).toBeVisible();
  await page.locator(`tr[data-row="${second}"]`).focus();
  await page.keyboard.press("i");
  const inspector = page.getByRole("complementary", { name: "Inspector" });
  await expect(inspector).toContainText("the second");
  await expect(inspector.locator(".verdict")).toContainText("won round 1");
  await expect(page).toHaveURL(new RegExp(`inspect=${second}`));
  // The inspector shows what the others do.
  await expect(page.locator("table.tasks thead th")).toHaveText(["State", "Kind", "Task", "Agent"]);
  await page.locator(`tr[data-row="${second}"]`).focus();
  await page.keyboard.press("ArrowDown");
  await expect(inspector).toContainText("the first");
  await expect(inspector).not.toContainText("the second");
  await page.locator(`tr[data-row="${second}"] td[data-label=Kind]`).click();
  await expect(inspector).toContainText("the second");
  for (const colorScheme of ["light", "dark"] as const) {
    await page.emulateMedia({ colorScheme });
    expect(await findings(page), colorScheme).toEqual([]);
  }
  // A link shows the same to another person.
  const ben = await seats.person("ben", { viewport: { width: 320, height: 640 } });
  const there = new URL(page.url());
  await ben.page.goto(`${ben.origin}${there.pathname}${there.search}`);
  await expect(ben.page.getByRole("complementary", { name: "Inspector" })).toContainText("the second");
  expect(await overflow(ben.page)).toBeLessThanOrEqual(0);
  await page.keyboard.press("i");
  await expect(inspector).toHaveCount(0);
  await expect(page).not.toHaveURL(/inspect/);
});

test("a person chooses the columns and their order, and they stay", async ({ seats }) => {
  await seats.reaches(await seats.request("support.reply"), "completed");
  const { page, origin } = await seats.person("ana");
  await page.goto(`${origin}/dashboard/demo/tasks?heartbeat=1000&reconnect=200`);
  await isLive(page);
  const names = (): Promise<string[]> => page.locator("table.tasks thead th").allTextContents();
  await expect(page.locator("table.tasks tbody tr").first()).toBeVisible();
  expect(await names()).toEqual(["State", "Kind", "Task", "Agent", "Offers", "Score", "Try", "Requested", "Took", "Requester"]);
  await page.getByText("Columns", { exact: true }).click();
  const choice = page.getByRole("list", { name: "Columns of the list" });
  await expect(choice.getByLabel("Task", { exact: true })).toBeDisabled();
  for (const column of ["Offers", "Score", "Try"]) await choice.getByLabel(column, { exact: true }).uncheck();
  await choice.getByLabel("Cost", { exact: true }).check();
  await choice.getByRole("button", { name: "Move Cost to the left" }).click();
  const chosen = ["State", "Kind", "Task", "Agent", "Requested", "Took", "Cost", "Requester"];
  expect(await names()).toEqual(chosen);
  await page.reload();
  await expect(page.locator("table.tasks tbody tr").first()).toBeVisible();
  expect(await names()).toEqual(chosen);
  // A task without input has a name.
  await expect(page.locator("td[data-label=Task] a").first()).not.toHaveText("null");
  await page.getByText("Columns", { exact: true }).click();
  await page.getByRole("button", { name: "The usual ones" }).click();
  await page.getByRole("heading", { level: 1 }).click();
  await expect(choice, "a click elsewhere closes the choice").toHaveCount(0);
  await expect(page.getByRole("columnheader", { name: "Score" })).toBeVisible();
});

test("a histogram says how long the ended tasks of the filter took", async ({ seats }) => {
  for (let i = 0; i < 3; i++) await seats.reaches(await seats.request("support.reply"), "completed");
  const { page, origin } = await seats.person("ana", { bypassCSP: true });
  await page.goto(`${origin}/dashboard/demo/tasks?kind=support.reply&heartbeat=1000&reconnect=200`);
  await isLive(page);
  await page.getByRole("button", { name: "Durations" }).click();
  await expect(page).toHaveURL(/durations=1/);
  const durations = page.getByRole("region", { name: "Durations" });
  await expect(durations).toContainText(/Of the newest \d+, half took at most .+, nine of ten at most/);
  const told = Number(/newest (\d+)/.exec((await durations.textContent()) ?? "")?.[1]);
  await durations.getByRole("button", { name: "Show as table" }).click();
  const counts = await durations.locator("td.number").allTextContents();
  expect(counts.reduce((sum, n) => sum + Number(n), 0)).toBe(told);
  expect(told).toBeGreaterThanOrEqual(3);
  await durations.getByRole("button", { name: "Show as chart" }).click();
  expect(await findings(page)).toEqual([]);
  await page.setViewportSize({ width: 320, height: 640 });
  expect(await overflow(page)).toBeLessThanOrEqual(0);
  await page.goto(`${origin}/dashboard/demo/tasks?kind=nothing.like.it&durations=1`);
  await expect(durations).toContainText("No task of this filter has ended.");
});

test("the command that explains a task is copied", async ({ seats }) => {
  const task = await seats.request("support.reply");
  await seats.reaches(task, "completed");
  const { page, origin } = await seats.person("ana", { permissions: ["clipboard-read", "clipboard-write"] });
  await page.goto(`${origin}/dashboard/demo/tasks/${task}`);
  await isLive(page);
  await page.getByRole("button", { name: "Copy command" }).click();
  await poll(() => page.evaluate(() => navigator.clipboard.readText())).toBe(`convoke task why ${task}`);
});

test("tasks are grouped by what a person chooses, and names of the daemon are words", async ({ seats }) => {
  const replies = [await seats.request("support.reply"), await seats.request("support.reply")];
  for (const id of replies) await seats.reaches(id, "completed");
  const failed = await seats.request("report.build", { policy: { attempts_max: 1, backoff: "10ms" } });
  await seats.reaches(failed, "failed");
  const last = await seats.request("support.reply");
  await seats.reaches(last, "completed");
  const { page, origin } = await seats.person("ana", { bypassCSP: true, viewport: { width: 1440, height: 900 } });
  await page.goto(`${origin}/dashboard/demo/tasks?kind=support.reply,report.build&heartbeat=1000&reconnect=200`);
  await isLive(page);
  await expect(page.locator(`tr[data-row="${failed}"] td[data-label=State]`)).toHaveText(/failed \(attempts exhausted\)/);
  await page.getByLabel("Group by").selectOption("kind");
  await expect(page).toHaveURL(/group=kind/);
  const rows = page.locator("table.tasks tbody tr");
  await expect(rows.first(), "the group of the newest task").toHaveText(/^support\.reply \d+$/);
  await expect(rows.nth(1)).toHaveAttribute("data-row", last);
  const groups = page.locator("tr.group");
  await expect(groups).toHaveText([/^support\.reply \d+$/, /^report\.build \d+$/]);
  const kinds = await page.locator("td[data-label=Kind]").allTextContents();
  const first = kinds.indexOf("report.build");
  expect(kinds.slice(0, first).every((kind) => kind === "support.reply") && kinds.slice(first).every((kind) => kind === "report.build"), kinds.join()).toBe(true);
  expect(await groups.first().textContent(), "its number of tasks").toBe(`support.reply ${first}`);
  // The keys go from task to task, over the heads of the groups.
  await page.locator("tr[data-row]").nth(first - 1).focus();
  await page.keyboard.press("ArrowDown");
  await expect(page.locator("tr[data-row]").nth(first)).toBeFocused();
  for (const colorScheme of ["light", "dark"] as const) {
    await page.emulateMedia({ colorScheme });
    expect(await findings(page), colorScheme).toEqual([]);
  }
  await page.setViewportSize({ width: 320, height: 640 });
  expect(await overflow(page)).toBeLessThanOrEqual(0);
  // A link groups for another person, too; an unknown grouping is none.
  const ben = await seats.person("ben");
  await ben.page.goto(`${ben.origin}/dashboard/demo/tasks?group=state`);
  await expect(ben.page.locator("tr.group").filter({ hasText: "failed" })).toHaveCount(1);
  await ben.page.goto(`${ben.origin}/dashboard/demo/tasks?group=colour`);
  await expect(ben.page.locator("tr[data-row]").first()).toBeVisible();
  await expect(ben.page.locator("tr.group")).toHaveCount(0);
});
