// What a person must be able to do who has never seen the page, by mouse alone and by keyboard alone, in both themes.
import type { Locator } from "@playwright/test";
import { hands } from "./hand.ts";
import { expect, findings, isLive, test } from "./stage.ts";

const clock = (at: number): string => new Date(at).toISOString().slice(11, 19);

for (const by of ["mouse", "keyboard"] as const)
  for (const colorScheme of ["light", "dark"] as const)
    test(`ten tasks by ${by}, ${colorScheme}`, async ({ seats }) => {
      const mark = `${by}-${colorScheme}`;
      const { page, origin } = await seats.person("ana", { colorScheme, bypassCSP: true, viewport: { width: 1440, height: 900 } }, "operator");
      // The times that are typed and read are UTC.
      await page.keyboard.press("z");
      const hand = hands[by](page);
      const facts = page.locator(".facts").first();
      const dialog = (name: string): Locator => page.getByRole("dialog", { name }).filter({ visible: true });
      const step = (title: string, body: () => Promise<void>): Promise<void> =>
        test.step(title, async () => {
          await body();
          expect(await findings(page), title).toEqual([]);
        });
      const ticket = await seats.ticket(`Refund of ${mark}`);
      await seats.reaches(ticket, "completed");

      await step("who has a task and why", async () => {
        await hand.find(ticket);
        await expect(facts).toContainText("with expert");
        await expect(page.locator(".verdict")).toContainText(/^expert won round 1: .*before/);
      });

      let address = "";
      await step("what another policy would have done", async () => {
        await hand.press(page.getByRole("button", { name: "cheapest" }));
        await expect(page.locator(".what-if [role=status]")).toContainText(/clerk .*instead of expert/);
        address = page.url();
      });

      await step("a colleague sees exactly this", async () => {
        const ben = await seats.person("ben", { colorScheme });
        await ben.page.goto(address.replace(origin, ben.origin));
        await expect(ben.page.locator(".what-if [role=status]")).toContainText(/clerk .*instead of expert/);
        await ben.context.close();
      });

      await step("which tasks wait for a person, and one is answered", async () => {
        const asked = await seats.request("plan.choose");
        await seats.reaches(asked, "waiting");
        await hand.open("Inbox");
        const card = page.locator(".cards > li", { has: page.locator(`a[title="${asked}"]`) });
        await hand.type(card.getByLabel(/^Note/), "the large one");
        await hand.press(card.getByRole("button", { name: "Approve" }));
        await expect(card).toHaveCount(0);
        await seats.reaches(asked, "completed");
      });

      await step("all running tasks of a kind are canceled", async () => {
        const kind = `index.${mark}`;
        const ids = [await seats.request(kind, { requires: ["index.rebuild"] }), await seats.request(kind, { requires: ["index.rebuild"] })];
        for (const id of ids) await seats.reaches(id, "running");
        await hand.open("Tasks");
        await hand.press(page.getByRole("button", { name: "running", exact: true }));
        await hand.type(page.getByLabel("Kind"), kind);
        await hand.enter();
        await expect(page.locator("tbody tr")).toHaveCount(2);
        await hand.press(page.getByRole("button", { name: "Cancel all found…" }));
        const many = dialog("Many tasks at once");
        await hand.press(many.getByRole("button", { name: "Cancel 2 tasks" }));
        await expect(many).toContainText("2 tasks canceled");
        await hand.press(many.getByRole("button", { name: "Close" }));
        for (const id of ids) await seats.reaches(id, "canceled");
      });

      await step("which agent fails most, and at which confidence it errs", async () => {
        await seats.reaches(await seats.request("report.build", { policy: { attempts_max: 1 } }), "failed");
        await hand.open("Agents");
        await hand.press(page.getByRole("button", { name: "most failed" }));
        const first = page.locator("tbody tr").first();
        await expect(first).toContainText("fragile");
        await hand.press(first.getByRole("link", { name: "fragile" }));
        const calibration = page.getByRole("region", { name: "Calibration: report.build" });
        await expect(calibration).toContainText("It is worse than it says.");
        await hand.press(calibration.getByRole("button", { name: "Show as table" }));
        await expect(calibration.getByRole("row").nth(1).getByRole("cell").first()).toContainText(/^0\.\d/);
        await expect(calibration.getByRole("row").nth(1).getByRole("cell").last(), "none was completed").toHaveText("0");
      });

      await step("what a tree has cost, and its budget is raised", async () => {
        const tree = await seats.request("report.year", { run_at: "2099-01-01T00:00:00Z", budget: { tree: { microdollars: 500_000 } } });
        await seats.reaches(await seats.request("support.reply", { parent_id: tree }), "completed");
        await hand.find(tree);
        await expect(facts).toContainText("scheduled");
        if (by === "keyboard") await page.keyboard.press("6");
        else await hand.press(page.getByRole("tab", { name: "Parts" }));
        await expect(page.getByRole("tabpanel")).toContainText("$0.0009 paid for 2 tasks");
        if (by === "keyboard") await page.keyboard.press("7");
        else await hand.press(page.getByRole("tab", { name: "Budget" }));
        await expect(page.getByRole("img", { name: "$0.0009 spent and $0 reserved of $0.50" })).toBeVisible();
        if (by === "keyboard") await page.keyboard.press("b");
        else await hand.press(page.getByRole("tabpanel").getByRole("button", { name: "Set budget…" }));
        const budget = dialog("Set the budget");
        await hand.type(budget.getByLabel(/Most dollars with its parts/), "1.25");
        await hand.press(budget.getByRole("button", { name: "Set the budget" }));
        await expect(page.getByRole("img", { name: /spent and \$0 reserved of \$1\.25/ })).toBeVisible();
        await seats.service(`/v1/tasks/${tree}/cancel`, {});
      });

      await step("why nobody offered", async () => {
        const id = await seats.request("crystal.ball", { requires: ["foresight", "support.reply"], policy: { rounds_max: 1 } });
        await seats.reaches(id, "failed");
        await hand.find(id);
        const nobody = page.getByRole("region", { name: "Nobody offered" });
        await expect(nobody).toContainText("no agent of the org demo that is present has the capabilities");
        await expect(nobody.getByRole("listitem").filter({ hasText: "expert" })).toContainText("lacks foresight");
        await expect(nobody.getByRole("listitem").filter({ hasText: "clerk" })).toContainText("lacks foresight, support.reply");
      });

      await step("an agent is drained and gets nothing new", async () => {
        await hand.find("slow");
        await expect(page.getByRole("button", { name: "Drain…" })).toBeVisible();
        if (by === "keyboard") await page.keyboard.press("d");
        else await hand.press(page.getByRole("button", { name: "Drain…" }));
        await hand.press(dialog("Drain slow?").getByRole("button", { name: "Drain the agent" }));
        await expect(page.getByText(/Drained since/)).toContainText("by user:convoke#ana");
        const waits = await seats.request("index.rebuild");
        // The arbiter has looked at it: a later task of another agent is done.
        await seats.reaches(await seats.request("support.reply"), "completed");
        expect((await seats.api<{ state: string }>(`/v1/tasks/${waits}`)).state).toBe("open");
        await expect(page.getByRole("region", { name: "Works on" })).toContainText("Nothing now.");
        await seats.service(`/v1/tasks/${waits}/cancel`, {});
        await hand.press(page.getByRole("button", { name: "Resume…" }));
        await hand.press(dialog("Resume slow?").getByRole("button", { name: "Resume the agent" }));
        await expect(page.getByText(/Drained since/)).toHaveCount(0);
      });

      await step("what happened at a time", async () => {
        const before = Number.parseInt(ticket.slice(0, 8) + ticket.slice(9, 13), 16);
        const later = await seats.request("support.reply");
        await hand.open("Tasks");
        // Seconds, because the test is shorter than a minute.
        await hand.type(page.getByLabel("Since"), clock(before));
        await hand.enter();
        await hand.type(page.getByLabel("Until"), clock(before + 1000));
        await hand.enter();
        await expect(page.locator(`tr[data-row="${ticket}"]`)).toBeVisible();
        await expect(page.locator(`tr[data-row="${later}"]`)).toHaveCount(0);
        await expect(page, "a link means the same time everywhere").toHaveURL(/since=20\S+Z&until=20\S+Z/);
        await isLive(page);
      });
    });
