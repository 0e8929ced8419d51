// How the tests start Debian's Chromium, also those of the dashboard.
import { existsSync } from "node:fs";

/**
 * Chromium's own headless build first: the same engine without the windows, for a quarter of the processor time of the
 * whole browser. `tools/setup.sh` knows the same paths.
 */
const PROGRAMS = ["/usr/bin/chromium-headless-shell", "/usr/bin/chromium"];

/**
 * Playwright's own list (1.65), because Chromium uses only the last `--disable-features`, and two more: each window would
 * load pages for suggestions under its address bar, which cost more processor time than a page of these tests.
 */
const FEATURES_OFF = [
  "AvoidUnnecessaryBeforeUnloadCheckSync", "DestroyProfileOnBrowserClose", "HttpsUpgrades", "HttpsFirstBalancedModeAutoEnable",
  "LensOverlay", "MediaRouter", "PaintHolding", "ThirdPartyStoragePartitioning", "AvoidCorsURLLoaderRestartOnRedirect",
  "OptimizationHints", "NetworkTimeServiceQuerying", "AimEnabled", "PreconnectToSearch",
  "WebUIOmniboxPopup", "WebUIOmniboxAimPopup",
];

/** Returns how to launch it, with further flags and features that are off. */
export const chromium = (flags: string[] = [], featuresOff: string[] = []): { executablePath: string; args: string[] } => ({
  executablePath: process.env.CHROMIUM || (PROGRAMS.find((program) => existsSync(program)) ?? PROGRAMS[0]!),
  args: [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    // Without these it makes DNS lookups at the start.
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    `--disable-features=${[...FEATURES_OFF, ...featuresOff].join(",")}`,
    ...flags,
  ],
});
