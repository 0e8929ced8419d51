// The page in a real browser against a real daemon.
import { drag, expect, findings, isLive, poll, test } from "./stage.ts";
import { has } from "../../../../examples/web/tests/browser/harness/wait.ts";

test("a link signs in once, and signing out ends the session", async ({ seats }) => {
  const link = new URL(seats.link("ana"));
  const context = await seats.browser.newContext();
  const page = await context.newPage();
  await page.goto(link.href);
  await isLive(page);
  expect(page.url(), "the code is gone from the address").not.toContain("code");
  await expect(page.getByText("ana (viewer)")).toBeVisible();
  expect(await page.evaluate(() => JSON.stringify([{ ...localStorage }, { ...sessionStorage }, document.cookie])), "no token is stored where a script reads it").not.toMatch(/ey[A-Za-z0-9_-]{10}/);
  await page.reload();
  await isLive(page);

  const second = await seats.browser.newContext();
  const thief = await second.newPage();
  await thief.goto(link.href);
  await expect(thief.getByRole("alert")).toContainText("the link was used before");
  await thief.getByLabel("Sign-in link").fill("nonsense");
  await thief.getByRole("button", { name: "Sign in" }).click();
  await expect(thief.getByRole("alert")).toContainText("not a sign-in link");
  await thief.getByLabel("Sign-in link").fill(seats.link("ben"));
  await thief.keyboard.press("Enter");
  await expect(thief.getByText("ben (viewer)")).toBeVisible();
  // A link for somebody else is not followed silently.
  await thief.goto("about:blank");
  await thief.goto(seats.link("mallory"));
  await expect(thief.getByRole("heading", { name: "Sign in as mallory?" })).toBeVisible();
  await thief.getByRole("button", { name: "Stay ben" }).click();
  await expect(thief.getByText("ben (viewer)")).toBeVisible();

  await page.getByRole("button", { name: "Sign out" }).click();
  await expect(page.getByRole("heading", { name: "Convoke" })).toBeVisible();
  await page.reload();
  await expect(page.getByLabel("Sign-in link")).toBeVisible();
  await context.close();
  await second.close();
});

test("a ticket that SQL inserts becomes a row, and its negotiation is explained", async ({ seats }) => {
  const { page } = await seats.person("ana");
  await page.goto(`${new URL(page.url()).origin}/dashboard/demo/tasks?heartbeat=1000&reconnect=200`);
  await isLive(page);
  const subject = `Refund please <img src=x onerror="document.title='attacked'"> ${Date.now()}`;
  const id = await seats.ticket(subject);
  const row = page.locator(`tr[data-row="${id}"]`);
  await expect(row).toBeVisible();
  await expect(row, "it follows the task to its end").toHaveAttribute("data-state", "completed");
  await expect(row, "being sure counts most here").toContainText("expert");
  await row.getByRole("link", { name: "ticket" }).click();

  await expect(page.locator(".verdict")).toContainText("won round 1");
  const offers = page.locator(".offer");
  await expect(offers).toHaveCount(2);
  await expect(page.locator(".rung")).toContainText("finished");
  // The bars say what the daemon stored: segments add up to the total, which the table twin shows in every digit.
  const why = await seats.api<{ rounds: { offers: { agent_id: string; score: Record<string, number> }[] }[] }>(`/v1/tasks/${id}/why`);
  for (const { agent_id, score } of why.rounds[0]?.offers ?? []) {
    const bar = page.locator(".offer", { has: page.getByRole("link", { name: agent_id }) }).locator(".offer-bar");
    const [drawn, whole] = await bar.evaluate((bar) => [[...bar.querySelectorAll(".segment")].reduce((sum, part) => sum + part.getBoundingClientRect().width, 0), bar.getBoundingClientRect().width]);
    expect(Math.abs((drawn ?? 0) / (whole ?? 1) - (score.total ?? 0) / 1e6), agent_id).toBeLessThan(0.005);
  }
  await page.getByRole("button", { name: "Show as table" }).click();
  for (const { agent_id, score } of why.rounds[0]?.offers ?? []) await expect(page.getByRole("row", { name: agent_id })).toContainText(((score.total ?? 0) / 1e6).toFixed(6));
  await page.getByRole("button", { name: "Show as chart" }).click();
  // Another policy, by the same formula.
  await page.getByRole("button", { name: "cheapest" }).click();
  await expect(page.locator(".what-if")).toContainText("clerk 1.000");
  expect(page.url()).toContain("if=cheapest");

  for (const tab of ["Timeline", "Events", "Data"]) {
    await page.getByRole("tab", { name: tab }).click();
    await expect(page.getByRole("tab", { name: tab })).toHaveAttribute("aria-selected", "true");
  }
  await expect(page.locator("pre").first(), "a script in the data is text").toContainText("onerror");
  expect(await page.title()).not.toBe("attacked");
  await page.getByRole("tab", { name: "Events" }).click();
  await expect(page.locator(".events > li").first()).toContainText("requested");
  await page.getByRole("button", { name: /Details of requested/ }).click();
  await expect(page.locator(".events pre")).toContainText("support.triage");
});

test("filters are in the address, and a link shows another person the same", async ({ seats }) => {
  await seats.reaches(await seats.request("report.build", { policy: { attempts_max: 1 } }), "failed");
  await seats.reaches(await seats.request("support.reply"), "completed");
  const { page, origin } = await seats.person("ana");
  await page.goto(`${origin}/dashboard/demo/tasks`);
  await page.getByRole("button", { name: "failed" }).click();
  await page.getByLabel("Kind").fill("report.*,-report.none");
  await page.getByLabel("Kind").press("Enter");
  await expect(page).toHaveURL(/state=failed&kind=report/);
  await expect(page.locator("tbody tr").first()).toContainText("disk 7 is full");
  expect(new Set(await page.locator("tbody tr").evaluateAll((rows) => rows.map((row) => (row as HTMLElement).dataset.state)))).toEqual(new Set(["failed"]));
  const address = new URL(page.url());

  const ben = await seats.person("ben");
  await ben.page.goto(ben.origin + address.pathname + address.search);
  await expect(ben.page.getByRole("button", { name: "failed" })).toHaveAttribute("aria-pressed", "true");
  await expect(ben.page.getByLabel("Kind")).toHaveValue("report.*,-report.none");
  await expect(ben.page.locator("tbody tr")).toHaveCount(await page.locator("tbody tr").count());
  await page.getByLabel("Agent").fill("nobody");
  await page.getByLabel("Agent").press("Enter");
  await expect(page.getByRole("heading", { name: "No task matches the filter" })).toBeVisible();
  await page.getByRole("button", { name: "agent: nobody ✕" }).click();
  await expect(page.locator("tbody tr").first()).toBeVisible();
  await page.goBack();
  // A task of an address without its org.
  const id = await seats.request("support.reply");
  await ben.page.goto(`${ben.origin}/dashboard/t/${id}`);
  await expect(ben.page).toHaveURL(new RegExp(`/dashboard/demo/tasks/${id}$`));
  await ben.page.goto(`${ben.origin}/dashboard/elsewhere/tasks`);
  await expect(ben.page.getByRole("heading", { name: "about org elsewhere" })).toBeVisible();
  await ben.page.goto(`${ben.origin}/dashboard/demo/tasks/01a20acd-4c14-776f-94bc-2f5e3bf869ee`);
  await expect(ben.page.getByRole("alert")).toContainText("there is no task");
});

test("after kill -9 and a cut network nothing is missed", async ({ seats }) => {
  const { page, wire, origin } = await seats.person("ana");
  await page.goto(`${origin}/dashboard/demo/tasks?heartbeat=1000&reconnect=200`);
  await isLive(page);
  const same = async (): Promise<void> => {
    // Every row is compared with the daemon's answer, once nothing runs any more.
    await poll(async () => (await seats.api<{ tasks: unknown[] }>("/v1/tasks?view=line&state=open,awarded,running&kind=support.*")).tasks.length).toBe(0);
    const { tasks } = await seats.api<{ tasks: { id: string; state: string }[] }>("/v1/tasks?view=line&limit=50");
    const truth = tasks.map(({ id, state }) => `${id} ${state}`);
    await poll(() => page.locator("tr[data-row]").evaluateAll((rows) => rows.map((row) => `${(row as HTMLElement).dataset.row} ${(row as HTMLElement).dataset.state}`))).toEqual(truth);
  };
  const made: string[] = [];
  const away = `while away ${Date.now()}`;
  await seats.crash(async () => {
    await has(page, "data-live", "no connection");
    await expect(page.getByText(/no connection, as of/)).toBeVisible();
    // The database works on without the daemon: tickets become tasks when it is back.
    await seats.pool.query("insert into public.tickets (subject) select $1 from generate_series(1, 20) n", [away]);
  });
  await isLive(page);
  // "Nothing runs" is also true before they are tasks.
  const completed = "select count(*)::int as n from convoke.tasks where input -> 'ticket' ->> 'subject' = $1 and state = 'completed'";
  await poll(async () => (await seats.pool.query<{ n: number }>(completed, [away])).rows[0]?.n).toBe(20);
  for (let i = 0; i < 5; i++) made.push(await seats.request("support.reply"));
  for (const id of made) await seats.reaches(id, "completed");
  await same();

  wire.down();
  await has(page, "data-live", "no connection");
  const missed = await seats.request("support.reply");
  await seats.reaches(missed, "completed");
  wire.restore();
  await isLive(page);
  await expect(page.locator(`tr[data-row="${missed}"]`)).toHaveAttribute("data-state", "completed");
  await same();
});

test("a digest that is lost is noticed by its number", async ({ seats }) => {
  const id = await seats.request("index.rebuild");
  await seats.reaches(id, "running");
  const { page, origin } = await seats.person("ana");
  // Without the request that waits for the task's next event, the page has only the digests.
  await page.route(/events\?.*wait=/, (route) => route.abort());
  let isDropping = false;
  let dropped = 0;
  let passed = 0;
  await page.routeWebSocket(/realtime/, (socket) => {
    const server = socket.connectToServer();
    server.onMessage((message) => {
      if (isDropping && String(message).includes(id)) dropped += 1;
      else {
        if (String(message).includes('"digest"')) passed += 1;
        socket.send(message);
      }
    });
  });
  await page.goto(`${origin}/dashboard/demo/tasks/${id}`);
  await isLive(page);
  await expect(page.locator(".facts")).toContainText("running");
  // The numbers are counted from the first digest, which comes soon after the join.
  await poll(() => passed).toBeGreaterThan(0);
  isDropping = true;
  await seats.api(`/v1/tasks/${id}/cancel`, {});
  await seats.reaches(id, "canceled");
  await poll(() => dropped).toBeGreaterThan(0);
  // A digest about another task: only its number says that one is missing.
  await seats.reaches(await seats.request("support.reply"), "completed");
  await expect(page.locator(".facts")).toContainText("canceled");
});

test("the page of a task follows its events without any digest", async ({ seats }) => {
  const id = await seats.request("index.rebuild");
  await seats.reaches(id, "running");
  const { page, origin } = await seats.person("ana");
  await page.routeWebSocket(/realtime/, (socket) => {
    const server = socket.connectToServer();
    server.onMessage((message) => {
      if (!String(message).includes('"digest"')) socket.send(message);
    });
  });
  const refused = new Set<string>();
  let isRefusing = true;
  await page.route(/events\?.*wait=/, (route) => {
    if (!isRefusing) return route.continue();
    refused.add(route.request().url());
    return route.fulfill({ status: 429, contentType: "application/problem+json", body: '{"code":"rate_limited","detail":"too many"}' });
  });
  await page.goto(`${origin}/dashboard/demo/tasks/${id}/events`);
  await expect(page.locator(".facts")).toContainText("running");
  await poll(() => refused.size).toBe(1);
  isRefusing = false;
  // The page asks again after the refusal, and has what came meanwhile.
  await page.waitForRequest(/events\?.*wait=/);
  await seats.api(`/v1/tasks/${id}/cancel`, {});
  await seats.reaches(id, "canceled");
  await expect(page.locator(".facts")).toContainText("canceled");
  await expect(page.locator("ol.events li").last()).toContainText("canceled");
});

test("pause stops the screen, and resume shows what is now", async ({ seats }) => {
  const { page, origin } = await seats.person("ana");
  await page.goto(`${origin}/dashboard/demo/tasks`);
  await isLive(page);
  await expect(page.locator(".list-head [role=status]")).toContainText("task");
  await page.keyboard.press("p");
  await expect(page.getByText("paused", { exact: false }).first()).toBeVisible();
  const id = await seats.request("support.reply");
  await seats.reaches(id, "completed");
  await expect(page.locator(`tr[data-row="${id}"]`)).toHaveCount(0);
  await page.getByRole("button", { name: "Resume" }).click();
  await expect(page.locator(`tr[data-row="${id}"]`)).toHaveAttribute("data-state", "completed");
});

test("rows do not move under the pointer", async ({ seats }) => {
  await seats.reaches(await seats.request("support.reply"), "completed");
  const { page, origin } = await seats.person("ana");
  await page.goto(`${origin}/dashboard/demo/tasks`);
  await isLive(page);
  const first = page.locator("tbody tr").first();
  await first.hover();
  const before = await first.getAttribute("data-row");
  const id = await seats.request("support.reply");
  await expect(page.getByRole("button", { name: /changed or new/ })).toBeVisible();
  expect(await first.getAttribute("data-row")).toBe(before);
  await page.getByRole("button", { name: /changed or new/ }).click();
  await expect(page.locator("tbody tr").first()).toHaveAttribute("data-row", id);
});

test("everything is reached by keyboard alone", async ({ seats }) => {
  await seats.reaches(await seats.request("support.reply"), "completed");
  await seats.reaches(await seats.request("support.reply"), "completed");
  const { page } = await seats.person("ana");
  await page.keyboard.press("Tab");
  await expect(page.getByRole("link", { name: "Skip to the content" })).toBeFocused();
  await page.keyboard.press("g");
  await page.keyboard.press("t");
  await expect(page.getByRole("heading", { name: "Tasks", level: 1 })).toBeVisible();
  await expect(page.locator("tbody tr").nth(1)).toBeVisible();
  await page.keyboard.press("j");
  await expect(page.locator("tbody tr").first()).toBeFocused();
  await page.keyboard.press("ArrowDown");
  await expect(page.locator("tbody tr").nth(1)).toBeFocused();
  const second = await page.locator("tbody tr").nth(1).getAttribute("data-row");
  await page.keyboard.press("Enter");
  await expect(page).toHaveURL(new RegExp(`tasks/${second}$`));
  await page.keyboard.press("[");
  await expect(page).not.toHaveURL(new RegExp(`${second}`));
  await page.keyboard.press("]");
  await expect(page).toHaveURL(new RegExp(`tasks/${second}$`));
  await page.keyboard.press("3");
  await expect(page.getByRole("tab", { name: "Events" })).toHaveAttribute("aria-selected", "true");
  await page.keyboard.press("w");
  await expect(page.getByRole("tab", { name: "Why" })).toHaveAttribute("aria-selected", "true");
  await page.keyboard.press("Escape");
  await expect(page).toHaveURL(/\/tasks$/);
  await page.keyboard.press("/");
  await expect(page.getByLabel("Kind")).toBeFocused();
  await page.keyboard.type("support.reply");
  await page.keyboard.press("Enter");
  await expect(page).toHaveURL(/kind=support.reply/);
  await page.keyboard.press("Escape");
  await page.keyboard.press("?");
  const help = page.getByRole("dialog", { name: "Keys" });
  await expect(help).toBeVisible();
  await help.getByLabel("Single letters are keys").press("Space");
  await page.keyboard.press("Escape");
  await expect(help).toBeHidden();
  await page.keyboard.press("g");
  await page.keyboard.press("a");
  await expect(page, "single letters are off").toHaveURL(/tasks/);
  for (let i = 0; i < 40 && !(await page.getByRole("link", { name: "Agents", exact: true }).evaluate((link) => link === document.activeElement)); i++) await page.keyboard.press("Tab");
  await page.keyboard.press("Enter");
  await expect(page.getByRole("heading", { name: "Agents", level: 1 })).toBeVisible();
});

test("what waits, what failed and what runs is on the switchboard", async ({ seats }) => {
  const asked = await seats.request("plan.choose");
  await seats.reaches(asked, "waiting");
  await seats.reaches(await seats.request("report.build", { policy: { attempts_max: 1 } }), "failed");
  const running = await seats.request("index.rebuild");
  const { page } = await seats.person("ana");
  await expect(page.getByRole("region", { name: "Needs you" })).toContainText("Which plan should the report compare?");
  await expect(page.getByRole("region", { name: "Trouble" })).toContainText("disk … is full");
  await expect(page.getByRole("link", { name: /^\d+ running/ })).toContainText(/[1-9]\d* running|[1-9]/);
  await page.getByRole("link", { name: "Which plan should the report compare?" }).first().click();
  await expect(page.getByText("advisor asks")).toBeVisible();
  await seats.api(`/v1/tasks/${asked}/answer`, { answer: "the large one" });
  await expect(page.locator(".facts")).toContainText("completed");
  await page.goto(`${new URL(page.url()).origin}/dashboard/demo/tasks/${running}`);
  await expect(page.locator(".facts .progress")).toContainText("62 %");
  await expect(page.locator(".rung")).toContainText("reading page 62");
  await seats.api(`/v1/tasks/${running}/cancel`, {});
  await expect(page.locator(".facts")).toContainText(/cancel/);
});

test("an operator cancels and requeues, another browser follows, and a viewer sees no action", async ({ seats }) => {
  const id = await seats.request("index.rebuild");
  await seats.reaches(id, "running");
  const ana = await seats.person("ana", {}, "operator");
  const ben = await seats.person("ben");
  for (const { page, origin } of [ana, ben]) {
    await page.goto(`${origin}/dashboard/demo/tasks/${id}`);
    await isLive(page);
    await expect(page.locator(".facts")).toContainText("running");
  }
  await expect(ana.page.getByText("ana (operator)")).toBeVisible();
  await expect(ben.page.getByRole("button", { name: /Cancel|Requeue|Set budget/ })).toHaveCount(0);
  // What the page leaves out, the daemon refuses.
  const byHand = await ben.page.evaluate(async (task) => {
    const given = await fetch("/dashboard/session/token", { method: "POST", headers: { "content-type": "application/json" }, body: "{}" });
    const { token } = (await given.json()) as { token: string };
    return (await fetch(`/v1/tasks/${task}/cancel`, { method: "POST", headers: { authorization: `Bearer ${token}` }, body: "{}" })).status;
  }, id);
  expect(byHand).toBe(403);

  await ana.page.getByRole("button", { name: "Cancel…" }).click();
  const dialog = ana.page.getByRole("dialog", { name: "Cancel index.rebuild?" });
  await expect(dialog).toContainText("slow is asked to stop");
  await dialog.getByRole("button", { name: "Leave it" }).click();
  await expect(dialog).toBeHidden();
  expect((await seats.api<{ state: string }>(`/v1/tasks/${id}`)).state, "nothing is sent before it is confirmed").toBe("running");
  await ana.page.getByRole("button", { name: "Cancel…" }).click();
  await dialog.getByLabel("Reason").fill("not needed any more");
  await ana.page.keyboard.press("Enter");
  await expect(dialog).toBeHidden();
  for (const { page } of [ana, ben]) await expect(page.locator(".facts")).toContainText("canceled");
  await seats.reaches(id, "canceled");
  await ana.page.getByRole("tab", { name: "Events" }).click();
  await ana.page.getByRole("button", { name: /Details of cancel / }).first().click();
  await expect(ana.page.locator(".events pre")).toContainText("user:convoke#ana");

  // Somebody else was faster, and the screen stands still: the daemon's answer is in the dialog.
  await ana.page.getByRole("button", { name: "Pause" }).click();
  await ana.page.getByRole("button", { name: "Requeue…" }).click();
  await seats.service(`/v1/tasks/${id}/requeue`, {});
  await seats.reaches(id, "running");
  const requeue = ana.page.getByRole("dialog", { name: "Requeue index.rebuild?" });
  await requeue.getByRole("button", { name: "Requeue the task" }).click();
  await expect(requeue.getByRole("alert")).toContainText("running");
  await seats.service(`/v1/tasks/${id}/cancel`, {});
  await seats.reaches(id, "canceled");
});

test("what waits for a person is answered in the inbox", async ({ seats }) => {
  const asked = await seats.request("plan.choose");
  await seats.reaches(asked, "waiting");
  const chosen = await seats.request("support.triage", { policy: { award: "requester", choose_within: "1h" } });
  await poll(async () => (await seats.api<{ rounds: { offers: unknown[] }[] }>(`/v1/tasks/${chosen}/why`)).rounds[0]?.offers.length).toBe(2);
  const { page, origin } = await seats.person("ana", {}, "operator");
  await page.goto(`${origin}/dashboard/demo/inbox`);
  await isLive(page);
  const card = (id: string): ReturnType<typeof page.locator> => page.locator(".cards > li", { has: page.locator(`a[title="${id}"]`) });
  await expect(card(asked)).toContainText("advisor asks: Which plan should the report compare?");
  await expect(card(chosen).getByRole("button", { name: /^Choose / })).toHaveCount(2);
  await card(asked).getByLabel(/^Note/).fill("compare the large one");
  await card(asked).getByRole("button", { name: "Approve" }).click();
  await expect(card(asked), "it is gone when the daemon says so").toHaveCount(0);
  await seats.reaches(asked, "completed");
  const { result } = await seats.api<{ result: unknown }>(`/v1/tasks/${asked}`);
  expect(JSON.stringify(result)).toContain("compare the large one");
  await card(chosen).getByRole("button", { name: "Choose clerk" }).click();
  await expect(card(chosen)).toHaveCount(0);
  await seats.reaches(chosen, "completed");
  expect((await seats.api<{ agent_id: string }>(`/v1/tasks/${chosen}`)).agent_id).toBe("clerk");
});

test("a task is requested with its budget and its parts in view", async ({ seats }) => {
  const { page, origin } = await seats.person("ana", {}, "operator");
  await page.goto(`${origin}/dashboard/demo/tasks`);
  await isLive(page);
  await page.getByRole("button", { name: "Request a task…" }).click();
  const dialog = page.getByRole("dialog", { name: "Request a task" });
  await dialog.getByLabel("Kind", { exact: true }).fill("index.rebuild");
  await dialog.getByLabel("Input, as JSON").fill("{nonsense");
  await dialog.getByRole("button", { name: "Request the task" }).click();
  await expect(dialog.getByRole("alert")).toContainText("no JSON");
  await dialog.getByLabel("Input, as JSON").fill('{"n": 9007199254740993}');
  await dialog.getByRole("button", { name: "Request the task" }).click();
  await expect(page).toHaveURL(/tasks\/[0-9a-f-]{36}$/);
  await expect(page.locator(".facts")).toContainText("running");
  const id = new URL(page.url()).pathname.split("/").at(-1) ?? "";
  await page.getByRole("tab", { name: "Data" }).click();
  await expect(page.locator("pre").first(), "every digit of the input arrived").toContainText("9007199254740993");
  await page.getByRole("tab", { name: "Budget" }).click();
  await page.getByRole("tabpanel").getByRole("button", { name: "Set budget…" }).click();
  const budget = page.getByRole("dialog", { name: "Set the budget" }).filter({ visible: true });
  await budget.getByLabel(/Most dollars of this task/).fill("plenty");
  await budget.getByRole("button", { name: "Set the budget" }).click();
  await expect(budget.getByRole("alert")).toContainText("not an amount");
  await budget.getByLabel(/Most dollars of this task/).fill("0.25");
  await budget.getByRole("button", { name: "Set the budget" }).click();
  await expect(page.locator(".meter")).toHaveAttribute("aria-label", /of \$0\.25/);
  await page.getByRole("tab", { name: "Parts" }).click();
  await expect(page.getByRole("heading", { name: "No parts" })).toBeVisible();
  await page.getByRole("tab", { name: "Steps" }).click();
  await expect(page.getByRole("heading", { name: "No steps" })).toBeVisible();
  await seats.service(`/v1/tasks/${id}/cancel`, {});
  await seats.reaches(id, "canceled");
});

test("the palette and the filter have the focus before the next key", async ({ seats }) => {
  const { page, origin } = await seats.person("ana");
  /** Presses a key and returns the role or label of what gets a key that follows at once. */
  const focused = (init: { key: string; ctrlKey?: boolean }): Promise<string | null> =>
    page.evaluate(async (init) => {
      document.activeElement!.dispatchEvent(new KeyboardEvent("keydown", { ...init, bubbles: true, cancelable: true }));
      // The next task of the page: no frame is drawn before it.
      await new Promise((resolve) => {
        const { port1, port2 } = new MessageChannel();
        port1.onmessage = resolve;
        port2.postMessage(null);
      });
      return document.activeElement!.getAttribute("role") ?? document.activeElement!.getAttribute("data-focus");
    }, init);
  for (const path of ["", "/tasks"]) {
    await page.goto(`${origin}/dashboard/demo${path}`);
    await isLive(page);
    expect(await focused({ key: "k", ctrlKey: true }), path).toBe("combobox");
    await page.keyboard.press("Escape");
    await page.keyboard.press("Escape");
    await expect(page.getByRole("dialog")).toHaveCount(0);
    expect(await focused({ key: "/" }), path).toBe("filter");
  }
});

test("a palette that is opened again before its close event stays open", async ({ seats }) => {
  const { page } = await seats.person("ana");
  await page.keyboard.press("Control+k");
  await expect(page.getByRole("combobox")).toBeFocused();
  await page.keyboard.press("Escape");
  await page.keyboard.press("Control+k");
  await expect(page.getByRole("combobox")).toBeFocused();
  const isOpen = await page.evaluate(async () => {
    const dialog = document.querySelector("dialog[open]") as HTMLDialogElement;
    const closed = new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
    const press = (init: KeyboardEventInit): boolean => document.activeElement!.dispatchEvent(new KeyboardEvent("keydown", { ...init, bubbles: true, cancelable: true }));
    press({ key: "Enter" });
    // The page draws in a microtask, before the event of the close.
    await Promise.resolve();
    press({ key: "k", ctrlKey: true });
    await closed;
    await Promise.resolve();
    return dialog.open;
  });
  expect(isOpen).toBe(true);
  await expect(page.getByRole("combobox")).toBeFocused();
});

test("the palette goes anywhere, and a filter is saved as a view", async ({ seats }) => {
  const id = await seats.request("support.reply");
  await seats.reaches(id, "completed");
  const { page, origin } = await seats.person("ana", {}, "admin");
  const dialog = page.getByRole("dialog", { name: "Go to" });
  const goTo = async (typed: string): Promise<void> => {
    await page.keyboard.press("Control+k");
    await expect(dialog.getByRole("combobox")).toBeFocused();
    await page.keyboard.type(typed);
    await page.keyboard.press("Enter");
    await expect(dialog).toBeHidden();
  };
  await goTo(id);
  await expect(page).toHaveURL(new RegExp(`tasks/${id}$`));
  await page.keyboard.press("Control+k");
  await dialog.getByRole("combobox").fill("expert");
  await expect(dialog.getByRole("option", { name: "expert agent" })).toHaveAttribute("aria-selected", "true");
  await page.keyboard.press("Enter");
  await expect(page).toHaveURL(/agents\/expert$/);
  await goTo("channels");
  await expect(page.getByRole("row", { name: /convoke:demo/ })).toContainText("1");
  await page.getByRole("link", { name: "convoke:demo" }).click();
  await expect(page.getByRole("heading", { name: "Public room" })).toBeVisible();
  await expect(page.getByRole("row", { name: /authenticated/ }).first()).toContainText("ana");
  await goTo("system");
  await expect(page.getByRole("row", { name: /arbiter/ })).toContainText("ready");

  await page.goto(`${origin}/dashboard/demo/tasks?kind=support.reply`);
  await page.getByLabel("Name of this filter").fill("Replies");
  await page.getByRole("button", { name: "Save view" }).click();
  await expect(page.getByRole("link", { name: "Replies" })).toHaveAttribute("aria-current", "page");
  await page.reload();
  await isLive(page);
  await goTo("tasks");
  await page.getByRole("link", { name: "Replies" }).click();
  await expect(page).toHaveURL(/kind=support.reply/);
  await page.getByRole("button", { name: "Forget “Replies”" }).click();
  await expect(page.getByRole("link", { name: "Replies" })).toHaveCount(0);
});

test("a drained agent gets nothing new, and many tasks are canceled after a count", async ({ seats }) => {
  const { page, origin } = await seats.person("ana", {}, "operator");
  await page.goto(`${origin}/dashboard/demo/agents/slow`);
  await page.getByRole("button", { name: "Drain…" }).click();
  await page.getByRole("dialog", { name: "Drain slow?" }).getByRole("button", { name: "Drain the agent" }).click();
  await expect(page.getByText(/Drained since/)).toContainText("by user:convoke#ana");
  const kept = await seats.crash().then(() => seats.request("index.rebuild", { priority: 3 }));
  const other = await seats.request("index.rebuild", { priority: 4 });
  // The arbiter has looked at them: a later task of another agent is done.
  await seats.reaches(await seats.request("support.reply"), "completed");
  for (const id of [kept, other]) expect((await seats.api<{ state: string }>(`/v1/tasks/${id}`)).state, "also after a restart").toBe("open");

  await page.goto(`${origin}/dashboard/demo/tasks?kind=index.rebuild&state=open`);
  await isLive(page);
  await expect(page.locator("tbody tr")).toHaveCount(2);
  await page.locator("tbody tr").first().focus();
  await page.keyboard.press("x");
  await page.getByRole("button", { name: "Cancel 1 selected…" }).click();
  const dialog = page.getByRole("dialog", { name: "Many tasks at once" });
  await expect(dialog).toContainText("This will cancel 1 task");
  await dialog.getByRole("button", { name: "Leave them" }).click();
  expect((await seats.api<{ state: string }>(`/v1/tasks/${other}`)).state).toBe("open");
  await page.getByRole("button", { name: "Cancel 1 selected…" }).click();
  await dialog.getByRole("button", { name: "Cancel 1 task" }).click();
  await expect(dialog).toContainText("1 task canceled");
  await dialog.getByRole("button", { name: "Close" }).click();
  await seats.reaches(other, "canceled");
  // The button of the dialog lay over the list, and rows do not move under the pointer.
  await page.mouse.move(1, 1);
  await expect(page.locator("tbody tr")).toHaveCount(1);
  await page.getByRole("button", { name: "Cancel all found…" }).click();
  await expect(dialog).toContainText("This will cancel 1 task");
  await dialog.getByRole("button", { name: "Leave them" }).click();

  await page.goto(`${origin}/dashboard/demo/agents/slow`);
  await page.getByRole("button", { name: "Resume…" }).click();
  await page.getByRole("dialog", { name: "Resume slow?" }).getByRole("button", { name: "Resume the agent" }).click();
  await expect(page.getByText(/Drained since/)).toHaveCount(0);
  await seats.reaches(kept, "running");
  await seats.service(`/v1/tasks/${kept}/cancel`, {});
  await seats.reaches(kept, "canceled");
});

test("lanes, triggers and spending show what agents did", async ({ seats }) => {
  const ticket = await seats.ticket(`Late parcel ${Date.now()}`);
  await seats.reaches(ticket, "completed");
  const { page, origin } = await seats.person("ana");
  await page.goto(`${origin}/dashboard/demo/lanes?minutes=60`);
  await expect(page.getByRole("img", { name: /^expert: \d+ attempts?, busy for/ })).toBeVisible();
  await page.getByRole("button", { name: "Show as table" }).click();
  await expect(page.getByRole("row", { name: /expert/ }).first()).toContainText("support.triage");
  await page.getByRole("button", { name: "Show as chart" }).click();
  // A drag over the lanes looks closer.
  await drag(page, page.locator(".lane-rows").first(), 0.5, 0.75);
  await expect(page).toHaveURL(/from=20.*to=20|to=20.*from=20/);
  const range = new URL(page.url()).searchParams;
  const minutes = (Date.parse(range.get("to") ?? "") - Date.parse(range.get("from") ?? "")) / 60_000;
  expect(Math.abs(minutes - 15), `a quarter of an hour, and not ${minutes} minutes`).toBeLessThan(1);
  // The fields do the same by keyboard.
  const fields = page.getByRole("form", { name: "Range of time" });
  await fields.getByLabel("From").fill("soon");
  await fields.getByLabel("From").press("Enter");
  await expect(fields.getByRole("alert")).toContainText("Write two times");
  await fields.getByLabel("From").fill("30m");
  await fields.getByLabel("From").press("Enter");
  await expect(page.getByRole("img", { name: /^expert: \d+ attempts?, busy for/ })).toBeVisible();
  await page.getByRole("link", { name: "Tasks that were requested in this time" }).click();
  await expect(page.locator(`tr[data-row="${ticket}"]`)).toBeVisible();
  await page.goto(`${origin}/dashboard/demo/lanes?minutes=60`);
  await page.getByRole("button", { name: "Earlier" }).click();
  await expect(page).toHaveURL(/to=20/);
  await page.goto(`${origin}/dashboard/demo/triggers`);
  const row = page.getByRole("row", { name: /clerk#0/ });
  await expect(row).toContainText("INSERT on public.tickets");
  await expect(row.getByRole("link", { name: /ago/ })).toBeVisible();
  await page.goto(`${origin}/dashboard/demo/spend?days=1`);
  await expect(page.getByRole("img", { name: /Money by hour/ })).toBeVisible();
  await expect(page.getByRole("row", { name: /expert/ })).toBeVisible();
  await page.getByRole("button", { name: "by kind" }).click();
  await expect(page.getByRole("row", { name: /support.triage/ })).toBeVisible();
});

test("an admin tries the filter of a wake, which says what excludes the row", async ({ seats }) => {
  const { page, origin } = await seats.person("ana", { bypassCSP: true }, "admin");
  await page.goto(`${origin}/dashboard/demo/triggers?heartbeat=1000&reconnect=200`);
  await isLive(page);
  await page.getByRole("button", { name: "Try the filter of clerk#1" }).click();
  const dialog = page.getByRole("dialog", { name: "Try the filter of clerk#1" });
  const row = dialog.getByLabel(/^Row, as JSON/);
  await expect(row, "the columns to fill in").toHaveValue(/"subject": null/);
  const tries = dialog.getByRole("button", { name: "Try the row" });
  const conditions = dialog.getByRole("list", { name: "Conditions of the filter" }).getByRole("listitem");
  await row.fill('{"subject": "Invoice 7", "body": null}');
  await tries.click();
  await expect(dialog.getByRole("status")).toContainText("The row does not wake it.");
  await expect(conditions.nth(0)).toHaveText(/holds\s*subject=ilike\.%invoice%\s*subject is “Invoice 7”/);
  await expect(conditions.nth(1)).toHaveText(/excludes\s*body=neq\.test\s*body is NULL/);
  await row.fill('{"subject": "Invoice 7", "body": "paid twice"}');
  await tries.click();
  await expect(dialog.getByRole("status")).toContainText("The row wakes it: a task of kind invoice.check is requested");
  await dialog.getByText("Input of the task").click();
  await expect(dialog.locator("pre")).toContainText('"about": "Invoice 7"');
  for (const colorScheme of ["light", "dark"] as const) {
    await page.emulateMedia({ colorScheme });
    expect(await findings(page), colorScheme).toEqual([]);
  }
  await dialog.getByLabel("Change").selectOption("UPDATE");
  await tries.click();
  await expect(dialog.getByRole("status")).toContainText("The wake does not listen to UPDATE.");
  await row.fill('{"urgency": 1}');
  await tries.click();
  await expect(dialog.getByRole("alert")).toContainText('no column "urgency"');
  await expect(row, "what was typed stays").toHaveValue('{"urgency": 1}');
  await row.fill("{");
  await tries.click();
  await expect(dialog.getByRole("alert")).toContainText("The row is no JSON");
  await dialog.getByRole("button", { name: "Close" }).click();
  await expect(dialog).toBeHidden();
  expect((await seats.pool.query("select 1 from convoke.tasks where kind = 'invoice.check'")).rows, "nothing is requested").toEqual([]);
  const operator = await seats.person("otto", {}, "operator");
  await operator.page.goto(`${operator.origin}/dashboard/demo/triggers`);
  await expect(operator.page.getByRole("row", { name: /clerk#1/ })).toBeVisible();
  await expect(operator.page.getByRole("button", { name: /Try the filter/ })).toHaveCount(0);
});

test("a newcomer's first steps tick themselves, are gone when they are done, and come back from the help", async ({ seats }) => {
  const { page, origin } = await seats.person("nora", {}, "operator");
  const steps = page.getByRole("region", { name: /First steps|That was all/ });
  const step = (name: string): ReturnType<typeof page.locator> => steps.getByRole("listitem").filter({ hasText: name });
  for (const name of ["Request a task", "Answer an agent"]) await expect(step(name)).not.toHaveClass(/done/);
  await steps.getByText("This page is a client like yours").click();
  await expect(steps.locator("pre")).toContainText(`createClient("${origin}", "ey`);

  await steps.getByRole("button", { name: "Request one…" }).click();
  const dialog = page.getByRole("dialog", { name: "Request a task" });
  await expect(dialog.getByLabel("Kind", { exact: true }), "a kind that an agent can do").not.toHaveValue("");
  await dialog.getByLabel("Kind", { exact: true }).fill("plan.choose");
  await dialog.getByRole("button", { name: "Request the task" }).click();
  await page.getByRole("button", { name: "Approve" }).click();
  await expect(page.locator(".facts")).toContainText("completed");
  // A second award of a task, after its first attempt failed.
  await seats.reaches(await seats.request("report.build", { policy: { attempts_max: 2, backoff: "10ms" } }), "failed");
  await page.getByRole("link", { name: "Switchboard", exact: true }).click();
  for (const name of ["Request a task", "Answer an agent", "Stop an agent at work"]) await expect(step(name)).toHaveClass(/done/);

  await steps.getByRole("button", { name: /^Close/ }).click();
  await expect(steps).toHaveCount(0);
  await page.reload();
  await isLive(page);
  await expect(page.getByRole("region", { name: "Needs you" })).toBeVisible();
  await expect(steps).toHaveCount(0);
  await page.keyboard.press("?");
  await page.getByRole("button", { name: "Show the first steps" }).click();
  await expect(steps).toBeVisible();
});
