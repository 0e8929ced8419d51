// Waits that look often. The intervals of `expect` grow to a second, which added up to minutes of the suites.
import { expect, type Locator, type Page } from "@playwright/test";

const EVERY_MS = 50;
const PATIENCE_MS = 60_000;

export const html = (page: Page): Locator => page.locator("html");

/** Returns when an attribute of the page's root has this value. */
export async function has(page: Page, name: string, value: string): Promise<void> {
  const same = ([name, value]: [string, string]): boolean => document.documentElement.getAttribute(name) === value;
  await page.waitForFunction(same, [name, value] as [string, string], { polling: EVERY_MS, timeout: PATIENCE_MS }).catch(async (error: Error) => {
    // Only for its message: it says what is there instead.
    await expect(html(page)).toHaveAttribute(name, value, { timeout: 1 });
    throw error;
  });
}

/** Like `expect.poll`. */
export const poll = <T>(read: () => T | Promise<T>): ReturnType<typeof expect.poll<T>> => expect.poll(read, { intervals: [EVERY_MS, 2 * EVERY_MS] });
