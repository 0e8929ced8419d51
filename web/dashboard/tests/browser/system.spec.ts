// The daemon's own screens: figures over time, sessions, checks and settings; what agents promise; the wall.
import { drag, expect, findings, isLive, overflow, test } from "./stage.ts";

test("figures, checks and settings are on the screen of the system", async ({ seats }) => {
  await seats.reaches(await seats.request("support.reply"), "completed");
  const { page, origin } = await seats.person("ana", { bypassCSP: true }, "admin");
  await page.goto(`${origin}/dashboard/demo/system`);
  await isLive(page);
  const requested = page.getByRole("region", { name: "Tasks requested", exact: true });
  await expect(requested.getByRole("img")).toHaveAttribute("aria-label", /^Tasks requested: /);
  // A drag over a chart shows what the agents did then.
  await expect(requested.locator(".brush")).toBeVisible();
  await drag(page, requested.locator("svg"), 0.9, 0.2);
  await expect(page).toHaveURL(/\/lanes\?from=20.*&to=20/);
  await expect(page.getByRole("heading", { level: 1, name: "Lanes" })).toBeVisible();
  await page.goBack();
  await requested.getByRole("button", { name: "Show as table" }).click();
  await expect(requested.getByRole("row").nth(1)).toBeVisible();
  await page.getByRole("button", { name: "24 hours" }).click();
  await expect(page).toHaveURL(/step=1m/);
  await expect(requested).toBeVisible();
  await page.getByRole("button", { name: "Check the database" }).click();
  await expect(page.getByRole("row", { name: /^I1 / })).toContainText("right");
  await expect(page.getByRole("region", { name: "Checks" }).getByRole("status")).toContainText(/checks found/);
  await page.getByText(/settings, with their defaults/).click();
  await expect(page.getByRole("row", { name: /^gateway\./ }).first()).toBeVisible();
  await expect(page.getByRole("row", { name: /^auth.jwt_secret/ })).not.toContainText(seats.daemon.secret());
  for (const colorScheme of ["light", "dark"] as const) {
    await page.emulateMedia({ colorScheme });
    expect(await findings(page), `system, ${colorScheme}`).toEqual([]);
  }
  // What a viewer may not do is absent.
  const ben = await seats.person("ben");
  await ben.page.goto(`${ben.origin}/dashboard/demo/system`);
  await expect(ben.page.getByRole("heading", { name: "Your sessions" })).toBeVisible();
  await expect(ben.page.getByRole("heading", { name: "Settings" })).toHaveCount(0);
  await expect(ben.page.getByRole("button", { name: "Check the database" })).toHaveCount(0);
});

test("a person ends another session of theirs, and it is over there", async ({ seats }) => {
  const name = `cleo-${Date.now()}`;
  const laptop = await seats.person(name);
  const phone = await seats.person(name, { userAgent: "Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) Safari/604.1" });
  await laptop.page.goto(`${laptop.origin}/dashboard/demo/system`);
  const sessions = laptop.page.getByRole("region", { name: "Your sessions" });
  await expect(sessions.locator("tbody tr")).toHaveCount(2);
  const row = sessions.locator("tbody tr", { hasText: "Safari, iPhone" });
  await row.getByRole("button", { name: /^End…/ }).click();
  const dialog = laptop.page.getByRole("dialog", { name: `End the session of ${name}?` });
  await dialog.getByRole("button", { name: "End the session" }).click();
  await expect(dialog).toBeHidden();
  await expect(sessions.locator("tbody tr")).toHaveCount(1);
  await phone.page.reload();
  await expect(phone.page.getByLabel("Sign-in link")).toBeVisible();
  await laptop.page.reload();
  await isLive(laptop.page);
});

test("a page says two minutes before that its session ends, and goes on with a new link", async ({ seats }) => {
  const name = `dora-${Date.now()}`;
  const { page, origin } = await seats.person(name, { bypassCSP: true }, "operator");
  await seats.pool.query("update convoke.sessions set expires_at = clock_timestamp() + interval '100 seconds' where subject = $1", [name]);
  await page.goto(`${origin}/dashboard/demo/tasks?heartbeat=1000&reconnect=200`);
  await isLive(page);
  const told = page.getByRole("status").filter({ hasText: "Your session ends at" });
  await expect(told).toBeVisible();
  expect(await findings(page)).toEqual([]);
  const request = page.getByRole("dialog", { name: "Request a task" });
  await page.getByRole("button", { name: "Request a task" }).click();
  await request.getByLabel("Kind", { exact: true }).fill("half.typed");
  await request.getByRole("button", { name: "Leave it" }).click();
  await told.getByRole("button", { name: "Sign in again…" }).click();
  const dialog = page.getByRole("dialog", { name: "Sign in again" });
  // A link that does not work leaves the page as it is.
  const used = seats.link(name, "operator");
  const thief = await seats.browser.newContext();
  const elsewhere = await thief.newPage();
  await elsewhere.goto(used);
  await isLive(elsewhere);
  await dialog.getByLabel("Sign-in link").fill(used);
  await dialog.getByRole("button", { name: "Sign in" }).click();
  await expect(dialog.getByRole("alert")).toContainText("the link was used before");
  await dialog.getByLabel("Sign-in link").fill(seats.link(name, "operator"));
  await dialog.getByRole("button", { name: "Sign in" }).click();
  await expect(dialog).toHaveCount(0);
  await expect(told).toHaveCount(0);
  await isLive(page);
  await page.getByRole("button", { name: "Request a task" }).click();
  await expect(request.getByLabel("Kind", { exact: true }), "what was typed stays").toHaveValue("half.typed");
  await thief.close();
});

test("an agent shows what it promises, what its offers lost by, and for operators its definition", async ({ seats }) => {
  await seats.reaches(await seats.ticket(`Parcel ${Date.now()}`), "completed");
  const { page, origin } = await seats.person("ana", {}, "operator");
  await page.goto(`${origin}/dashboard/demo/agents/clerk`);
  await isLive(page);
  await expect(page.getByRole("region", { name: "Offers" })).toContainText(/lost by confidence/);
  await expect(page.getByRole("region", { name: "Offers" })).toContainText("$0.00004 and 60ms, confidence 0.7");
  await page.getByText("The file as it was read").click();
  await expect(page.getByRole("region", { name: "Definition" }).locator("pre")).toContainText('"capabilities"');
  const ben = await seats.person("ben");
  await ben.page.goto(`${ben.origin}/dashboard/demo/agents/clerk`);
  await expect(ben.page.getByRole("region", { name: "Offers" })).toBeVisible();
  await expect(ben.page.getByRole("region", { name: "Definition" })).toHaveCount(0);
});

test("a wall of an admin shows several orgs in turn, and that of others their own alone", async ({ seats }) => {
  await seats.pool.query("select convoke.request_task('far.away', requires => '{foresight}', org => 'elsewhere')");
  const address = "/dashboard/demo?wall=1&orgs=demo,elsewhere&every=5&heartbeat=1000&reconnect=200";
  const { page, origin } = await seats.person("ana", {}, "admin");
  await page.goto(origin + address);
  await isLive(page);
  const heading = page.getByRole("heading", { level: 1 });
  const open = page.locator(".tile", { hasText: "open" }).locator("b");
  for (const org of ["demo", "elsewhere", "demo"]) {
    await expect(heading).toHaveText(`Switchboard of ${org}`);
    await expect(page.locator(".bar .brand")).toContainText(org);
    if (org === "elsewhere") await expect(open).toHaveText("1");
  }
  const ben = await seats.person("ben", {}, "operator");
  const asked: unknown[] = [];
  ben.page.on("request", (request) => request.url().endsWith("/session/token") && asked.push(request.postDataJSON()));
  await ben.page.goto(ben.origin + address);
  await isLive(ben.page);
  await expect(ben.page.getByRole("heading", { level: 1 })).toHaveText("Switchboard of demo");
  expect(asked).toEqual([{ org: "demo" }]);
});

test("the wall shows the switchboard alone, without anything that scrolls", async ({ seats }) => {
  await seats.reaches(await seats.ticket(`Broken lid ${Date.now()}`), "completed");
  const { page, origin } = await seats.person("ana", { bypassCSP: true, viewport: { width: 1920, height: 1080 } });
  await page.getByRole("link", { name: "Wall" }).click();
  await expect(page).toHaveURL(/wall=1/);
  await expect(page.locator(".offer-bar").first()).toBeVisible();
  await expect(page.getByRole("navigation", { name: "Screens" })).toHaveCount(0);
  for (const [width, height] of [[1920, 1080], [3840, 2160], [1280, 720]] as const) {
    await page.setViewportSize({ width, height });
    expect(await overflow(page), `${width} px`).toBeLessThanOrEqual(0);
    expect(await page.evaluate(() => document.documentElement.scrollHeight - document.documentElement.clientHeight), `${height} px`).toBeLessThanOrEqual(0);
    // All agents are on the screen, and a row is there whole or not at all.
    await expect(page.locator(".plug").last()).toBeInViewport({ ratio: 1 });
    const cut = await page.locator(".board :is(.rows, .negotiations) > li").evaluateAll((rows) =>
      rows.filter((row) => {
        const [own, list] = [row.getBoundingClientRect(), row.parentElement!.getBoundingClientRect()];
        return own.left < list.right && own.bottom > list.bottom + 1;
      }).length,
    );
    expect(cut, `rows that are cut at ${width} × ${height}`).toBe(0);
  }
  for (const colorScheme of ["light", "dark"] as const) {
    await page.emulateMedia({ colorScheme });
    expect(await findings(page), `wall, ${colorScheme}`).toEqual([]);
  }
  await page.keyboard.press("Escape");
  await expect(page).not.toHaveURL(/wall/);
  await expect(page.getByRole("navigation", { name: "Screens" })).toBeVisible();
  await page.goto(`${origin}/dashboard/demo?wall=1`);
  await isLive(page);
});
