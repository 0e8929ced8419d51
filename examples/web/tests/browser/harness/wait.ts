// Waits that look often: the intervals of `expect` grow to a second, which added up to minutes of the suites. Types of
// Playwright alone, because the tests of the dashboard use this file with a Playwright of their own.
import type { Locator, Page } from "@playwright/test";

const EVERY_MS = 50;
const PATIENCE_MS = 60_000;

/** Options of `expect.poll`. */
export const OFTEN = { intervals: [EVERY_MS, 2 * EVERY_MS] };

export const html = (page: Page): Locator => page.locator("html");

/** Returns when an attribute of the page's root has this value. */
export async function has(page: Page, name: string, value: string): Promise<void> {
  const same = ([name, value]: [string, string]): boolean => document.documentElement.getAttribute(name) === value;
  await page.waitForFunction(same, [name, value] as [string, string], { polling: EVERY_MS, timeout: PATIENCE_MS }).catch(async (cause: Error) => {
    const shown = await html(page).getAttribute(name).catch(() => "unknown");
    throw new Error(`${name} of ${page.url()} is ${JSON.stringify(shown)}, not ${JSON.stringify(value)}`, { cause });
  });
}
