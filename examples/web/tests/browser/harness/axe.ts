// What axe finds on a page. Types of Playwright alone, because the tests of the dashboard use this file with a Playwright of
// their own.
import type { Page } from "@playwright/test";

/** The rules that look at colours: the slowest ones. They do not depend on the width, nor the others on the colours. */
const COLOURS = ["color-contrast", "link-in-text-block"];

export type Rules = "all" | "colours" | "others";

interface Finding {
  id: string;
  impact: string;
  nodes: { target: string[] }[];
}

/**
 * The findings that are serious or critical, of all rules, of those about colours or of the others. `axe` is the path of
 * the script, which is put into the page: its context needs `bypassCSP`.
 */
export async function findings(page: Page, axe: string, rules: Rules = "all"): Promise<string[]> {
  if (!(await page.evaluate(() => "axe" in window))) await page.addScriptTag({ path: axe });
  const options = {
    all: {},
    colours: { runOnly: { type: "rule", values: COLOURS } },
    others: { rules: Object.fromEntries(COLOURS.map((rule) => [rule, { enabled: false }])) },
  }[rules];
  const found = await page.evaluate(async (chosen) => {
    const { axe } = window as unknown as { axe: { run: (options: object) => Promise<{ violations: Finding[] }> } };
    return (await axe.run({ resultTypes: ["violations"], ...chosen })).violations;
  }, options);
  return found.filter(({ impact }) => impact === "serious" || impact === "critical").map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.target.join(" ")).join(", ")}`);
}
