import type { Page } from "@playwright/test";
import { startBidder } from "../../server/bidder.mjs";
import { expect, fresh, isLive, poll, test, type Stage } from "./harness/stage.ts";

// Every test has a capability of its own, so that tests that run beside it offer no task to its agents.
const need = (name: string): string => fresh(`test.${name}`);

async function onDuty(page: Page, capability: string): Promise<void> {
  await page.getByLabel("Capabilities").fill(capability);
  await page.getByRole("button", { name: "Go on duty" }).click();
}

/** Agents whom the daemon finds eligible for `capability`, as it says itself. */
async function eligible(stage: Stage, capability: string, agents: string[]): Promise<void> {
  await poll(async () => (await stage.query<{ id: string }>("select id from convoke.agents where capabilities @> array[$1] and status = 'present' order by id", [capability])).map((row) => row.id))
    .toEqual([...agents].sort());
}

async function request(page: Page, capability: string, text: string, award = "cheapest"): Promise<void> {
  await page.getByLabel("What is to be done").fill(text);
  await page.getByLabel("Needs").fill(capability);
  await page.getByLabel("Award").selectOption(award);
  await page.getByLabel("Seconds to offer").fill("120"); // A round closes when everybody has answered.
  await page.getByRole("button", { name: "Request", exact: true }).click();
}

async function offer(page: Page, cost: string): Promise<void> {
  const form = page.getByRole("form", { name: "Offer" }).first();
  await form.getByLabel("Cost").fill(cost);
  await form.getByRole("button", { name: /^Offer/ }).click();
}

test("the cheapest of two people and a program wins, and the loser sees why", async ({ seats, stage }) => {
  const kind = need("cheapest");
  const robot = startBidder(stage.daemon.url.origin, stage.token({ agent_id: "robot-1" }), { agent: "robot-1", capabilities: [kind], cost: 500 });
  const [ana, ben, cleo] = [await seats.seat("ana"), await seats.seat("ben"), await seats.seat("cleo")];
  const [a, b, c] = [await ana.open("/console/"), await ben.open("/console/"), await cleo.open("/console/")];
  await onDuty(a, kind);
  await onDuty(b, kind);
  await eligible(stage, kind, ["ana", "ben", "robot-1"]);
  await request(c, kind, "Name the release");
  await offer(a, "0.0003");
  await offer(b, "0.0004");
  // Everybody answered, so the round closes before its time.
  await a.getByRole("button", { name: "Accept" }).click();
  await expect(c.locator(".roster li").filter({ hasText: "ana" }), "the roster of others").toContainText("working");
  await a.getByLabel("Result").fill("Harbour");
  await a.getByRole("button", { name: "Finish" }).click();
  const asked = c.locator(".asked .card").first();
  await expect(asked).toHaveAttribute("data-state", "completed");
  await expect(asked.locator("pre")).toHaveText("Harbour");
  await b.locator(".requests").getByRole("button", { name: "Why?" }).click();
  await expect(b.locator(".requests .winner td").first()).toHaveText("ana");
  await expect(b.locator(".requests .why")).toContainText("ana won");
  await expect(b.locator(".requests table tbody tr")).toHaveCount(3);
  robot.stop();
});

test("a winner that disconnects is replaced with its checkpoint and fenced on return", async ({ seats, stage }) => {
  const kind = need("handover");
  const [ana, ben] = [await seats.seat("ana"), await seats.seat("ben")];
  const [a, b] = [await ana.open("/console/"), await ben.open("/console/")];
  await onDuty(a, kind);
  await onDuty(b, kind);
  await eligible(stage, kind, ["ana", "ben"]);
  await request(b, kind, "Translate the page");
  await offer(a, "0.0001");
  await offer(b, "0.0002");
  await a.getByRole("button", { name: "Accept" }).click();
  const slider = a.getByLabel("Progress, %");
  await slider.fill("50");
  await poll(async () => (await stage.query<{ n: number }>("select count(*)::int as n from convoke.assignments a join convoke.tasks t on t.id = a.task_id where t.kind = $1 and a.checkpoint is not null", [kind]))[0]?.n).toBe(1);
  ana.wire.down();
  // The socket of the winner is gone: the other one is asked again or awarded as standby, with the checkpoint.
  const again = b.getByRole("form", { name: "Offer" });
  await expect(again.or(b.getByRole("button", { name: "Accept" })).first()).toBeVisible();
  if (await again.count()) await offer(b, "0.0002");
  await b.getByRole("button", { name: "Accept" }).click();
  const work = b.locator(".work .card[data-state=working]");
  await expect(work).toContainText("Another agent began this");
  await expect(work).toContainText("epoch 2");
  await expect(work.getByLabel("Progress, %")).toHaveValue("50");
  ana.wire.restore();
  await isLive(a);
  // Ana's page still works on it: the next progress or heartbeat is answered.
  await a.locator(".work").evaluate((work) => work.querySelector("[type=range]")?.dispatchEvent(new Event("change")));
  await expect(a.locator(".work .card")).toContainText("fenced");
  await work.getByLabel("Result").fill("done by Ben");
  await work.getByRole("button", { name: "Finish" }).click();
  await expect(b.locator(".asked .card").first()).toHaveAttribute("data-state", "completed");
});

test("a task survives a kill of the daemon between award and accept", async ({ seats, stage }) => {
  const kind = need("killed");
  const robot = startBidder(stage.daemon.url.origin, stage.token({ agent_id: "robot-2" }), { agent: "robot-2", capabilities: [kind], cost: 900, workMs: 400 });
  const ana = await seats.seat("ana");
  const cleo = await seats.seat("cleo");
  const [a, c] = [await ana.open("/console/"), await cleo.open("/console/")];
  await onDuty(a, kind);
  await eligible(stage, kind, ["ana", "robot-2"]);
  await request(c, kind, "Count to ten");
  await offer(a, "0.0001");
  await expect(a.getByRole("button", { name: "Accept" })).toBeVisible();
  await stage.daemon.kill9();
  await ana.context.close(); // The winner never comes back.
  await stage.daemon.start();
  await poll(async () => (await stage.query<{ state: string; agent: string }>("select t.state, (select a.agent_id from convoke.assignments a where a.task_id = t.id order by a.epoch desc limit 1) as agent from convoke.tasks t where t.kind = $1", [kind]))[0])
    .toEqual({ state: "completed", agent: "robot-2" });
  robot.stop();
});

test("messages to another org and in another's name are refused and shown", async ({ seats }) => {
  const [ana, ben] = [await seats.seat("ana"), await seats.seat("ben")];
  const [a, b] = [await ana.open("/console/"), await ben.open("/console/")];
  const say = async (to: string, text: string): Promise<void> => {
    await a.getByLabel("To", { exact: true }).fill(to);
    await a.getByLabel("Text", { exact: true }).fill(text);
    await a.getByRole("button", { name: "Say" }).click();
  };
  await say("agent:ben", "good morning");
  await expect(b.locator(".console .messages")).toContainText("good morning");
  await say("org:elsewhere", "is anybody there?");
  await expect(a.locator(".console .messages .refused")).toContainText("forbidden");
  // A message with a forged sender reaches no client: past the page, with Ana's own token and Ben's name.
  const before = await b.locator(".console .messages li").count();
  const forged = await ana.context.request.post(`${ana.origin}/realtime/v1/api/broadcast`, {
    headers: { authorization: `Bearer ${await a.evaluate(async () => ((await (await fetch("/session/token", { method: "POST", headers: { "content-type": "application/json" }, body: "{}" })).json()) as { token: string }).token)}` },
    data: { messages: [{ topic: "agent:ben", event: "agent_message", payload: { agent_id: "cleo", text: "forged" } }] },
  });
  expect(forged.status(), "as Supabase answers: it says nothing about single messages").toBe(202);
  await say("agent:ben", "the next true one");
  await expect(b.locator(".console .messages")).toContainText("the next true one");
  expect(await b.locator(".console .messages li").count()).toBe(before + 1);
  expect(await b.locator(".console .messages").textContent()).not.toContain("forged");
});

test("the requester chooses an offer and answers a question of the worker", async ({ seats, stage }) => {
  const kind = need("choose");
  const [ana, ben] = [await seats.seat("ana"), await seats.seat("ben")];
  const [a, b] = [await ana.open("/console/"), await ben.open("/console/")];
  await onDuty(b, kind);
  await eligible(stage, kind, ["ben"]);
  await request(a, kind, "Draw a logo", "requester");
  await offer(b, "0.002");
  await a.getByRole("button", { name: "Choose" }).click();
  await b.getByRole("button", { name: "Accept" }).click();
  const work = b.locator(".work .card[data-state=working]");
  await work.getByLabel("Result").fill("Which colour?");
  await work.getByRole("button", { name: "Ask the requester" }).click();
  await expect(a.locator(".asked")).toContainText("Asks: Which colour?");
  await a.getByLabel("Answer").fill("blue");
  await a.getByRole("button", { name: "Answer" }).click();
  await b.getByRole("button", { name: "Accept" }).click();
  await expect(b.locator(".work .card[data-state=working]")).toContainText("blue");
  await b.locator(".work .card[data-state=working]").getByLabel("Result").fill("a blue logo");
  await b.locator(".work .card[data-state=working]").getByRole("button", { name: "Finish" }).click();
  await expect(a.locator(".asked .card").first()).toHaveAttribute("data-state", "completed");
});
