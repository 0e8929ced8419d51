// How the tests start Debian's Chromium, also those of the dashboard.

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
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    // Without these it makes DNS lookups at the start.
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    `--disable-features=${[...FEATURES_OFF, ...featuresOff].join(",")}`,
    ...flags,
  ],
});
