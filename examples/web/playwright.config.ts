import { defineConfig } from "@playwright/test";
import { chromium } from "./tests/browser/harness/chromium.ts";

const FLAGS = [
  // Five pictures a second: the video of three people is encoded without hardware.
  "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream=fps=5", "--disable-software-rasterizer",
  "--allow-loopback-in-peer-connection",
  // Names of other machines: pages from them are no secure context, unlike those of 127.0.0.1.
  "--host-resolver-rules=MAP *.test 127.0.0.1",
];

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
  reporter: [["list"], ["./tests/browser/harness/summary.ts"]],
  outputDir: "test-results",
  use: {
    headless: true,
    // Without a limit of its own a step that waits in vain ends with the test, and the report names the cleanup instead.
    actionTimeout: 60_000,
    navigationTimeout: 60_000,
    // Frames are drawn by the processor: small pages without animations leave more of it for the test.
    contextOptions: { reducedMotion: "reduce" },
    viewport: { width: 960, height: 640 },
    // mDNS names do not resolve in a container.
    launchOptions: chromium(FLAGS, ["WebRtcHideLocalIpsWithMdns"]),
  },
});
