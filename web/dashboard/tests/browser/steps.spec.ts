// An agent that thinks: its steps with their contents, and the answer about a call whose outcome nobody knows.
import { expect, findings, isLive, test } from "./stage.ts";

test("the steps of an agent that thinks have their contents for operators, and an unknown outcome is answered", async ({ seats }) => {
  const id = await seats.request("order.check", { input: { order: 7 }, policy: { attempts_max: 1 } });
  await seats.reaches(id, "waiting");
  const ana = await seats.person("ana", { bypassCSP: true }, "operator");
  const ben = await seats.person("ben");
  await ana.page.goto(`${ana.origin}/dashboard/demo/tasks/${id}/steps`);
  await isLive(ana.page);
  const step = (page: typeof ana.page, text: string): ReturnType<typeof page.locator> => page.locator(".step", { hasText: text });
  await expect(step(ana.page, "look")).toContainText("done");
  await expect(step(ana.page, "charge")).toContainText("unknown");
  await expect(step(ana.page, "question to the model").first()).toContainText("110 tokens");
  await step(ana.page, "look").getByRole("button", { name: /Contents of step/ }).click();
  await expect(step(ana.page, "look").locator("pre").first(), "arguments").toContainText("parcel 9007199254740993");
  await expect(step(ana.page, "look").locator("pre").last(), "the result is text, whatever it contains").toContainText("<b>B12</b>");
  for (const colorScheme of ["light", "dark"] as const) {
    await ana.page.emulateMedia({ colorScheme });
    expect(await findings(ana.page), `steps, ${colorScheme}`).toEqual([]);
  }

  // A viewer sees that there are steps, and none of their contents.
  await ben.page.goto(`${ben.origin}/dashboard/demo/tasks/${id}/steps`);
  await isLive(ben.page);
  await expect(step(ben.page, "charge")).toContainText("unknown");
  await expect(ben.page.getByText("shown to operators only")).toBeVisible();
  await expect(ben.page.getByRole("button", { name: /Contents of step/ })).toHaveCount(0);
  await expect(ben.page.locator("main")).not.toContainText("parcel");
  await expect(ben.page.getByRole("button", { name: "It happened" })).toHaveCount(0);

  // The person looks where the effect would be seen, and says what was found.
  const form = ana.page.locator(".answer");
  await expect(form).toContainText("charge");
  for (const name of ["It happened", "It did not: run it", "Skip the call"]) await expect(form.getByRole("button", { name })).toBeEnabled();
  await form.getByLabel(/Result of the call/).fill("charged as no. 4711");
  await form.getByRole("button", { name: "It happened" }).click();
  await seats.reaches(id, "completed");
  await expect(ana.page.locator(".facts").first()).toContainText("completed");
  await expect(step(ana.page, "charge")).toContainText("done");
  await step(ana.page, "charge").getByRole("button", { name: /Contents of step/ }).click();
  await expect(step(ana.page, "charge").locator("pre").last()).toContainText("charged as no. 4711");
  expect((await seats.api<{ result: unknown }>(`/v1/tasks/${id}`)).result).toEqual({ shipped: true });

  // Another one is skipped from the inbox.
  const second = await seats.request("order.check", { input: { order: 8 }, policy: { attempts_max: 1 } });
  await seats.reaches(second, "waiting");
  await ana.page.goto(`${ana.origin}/dashboard/demo/inbox?for=approval`);
  const card = ana.page.locator(".cards > li", { has: ana.page.locator(`a[title="${second}"]`) });
  await card.getByRole("button", { name: "Skip the call" }).click();
  await expect(card).toHaveCount(0);
  await seats.reaches(second, "completed");
  await ana.page.goto(`${ana.origin}/dashboard/demo/tasks/${second}/steps`);
  await expect(step(ana.page, "charge")).toContainText("skipped");
});
