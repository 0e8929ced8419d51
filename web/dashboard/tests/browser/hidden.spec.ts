// A daemon that sends the data of tasks to operators alone: what a viewer's page shows, and what reaches it.
import { Stage, expect, isLive, test } from "./stage.ts";

test("a viewer's page gets no data of tasks, and says who sees it", async ({ browser }) => {
  const stage = await Stage.forOperators(browser);
  try {
    const asked = await stage.request("plan.choose", { input: { text: "a private input" } });
    await stage.reaches(asked, "waiting");
    const done = await stage.request("support.reply", { input: { text: "a private input" } });
    await stage.reaches(done, "completed");
    const { page, origin } = await stage.person("ana");
    const got: string[] = [];
    page.on("response", async (answer) => {
      if (new URL(answer.url()).pathname.startsWith("/v1/")) got.push(await answer.text().catch(() => ""));
    });
    page.on("websocket", (socket) => socket.on("framereceived", ({ payload }) => got.push(String(payload))));
    for (const path of ["", "/tasks", `/tasks/${done}`, `/tasks/${done}/events`, `/tasks/${done}/data`, `/tasks/${done}/timeline`, `/tasks/${asked}`, "/inbox", "/agents", "/triggers"]) {
      await page.goto(`${origin}/dashboard/demo${path}`);
      await isLive(page);
      await expect(page.locator("main")).not.toContainText("Loading…");
      await expect(page.locator("main")).not.toContainText(/private|Which plan/);
      await expect(page.locator("main"), path).not.toContainText("has a fault");
    }
    expect(got.length).toBeGreaterThan(10);
    expect(got.filter((text) => /private|Which plan/.test(text))).toEqual([]);
    await page.goto(`${origin}/dashboard/demo/tasks/${done}/data`);
    await expect(page.locator("main")).toContainText("are shown to operators");
    await page.goto(`${origin}/dashboard/demo/tasks/${asked}`);
    await expect(page.locator(".answer")).toContainText("what it asks is shown to operators");
    const ben = await stage.person("ben", {}, "operator");
    await ben.page.goto(`${ben.origin}/dashboard/demo/tasks/${done}/data`);
    await expect(ben.page.locator("main")).toContainText("a private input");
    expect(stage.errors).toEqual([]);
  } finally {
    await stage.close();
  }
});
