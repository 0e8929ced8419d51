import { defineConfig } from "@playwright/test";
import { chromium } from "../../examples/web/tests/browser/harness/chromium.ts";

export default defineConfig({
  testDir: "tests/browser",
  testMatch: "**/*.spec.ts",
  workers: 2,
  // Limits for a machine ten times slower than usual. Nothing waits for them to pass: every wait has a condition.
  timeout: 240_000,
  expect: { timeout: 60_000 },
  forbidOnly: Boolean(process.env.CI),
  // A retry would hide a race: a failure is a failure.
  retries: 0,
  reporter: [["list"], ["./tests/browser/summary.ts"]],
  outputDir: "test-results",
  use: {
    headless: true,
    // Without a limit of its own a step that waits in vain ends with the test, and the report names the cleanup instead.
    actionTimeout: 60_000,
    navigationTimeout: 60_000,
    launchOptions: chromium(),
  },
});
