import { defineConfig } from "vitest/config";

// In development: `npx vite` beside a daemon; the page and the data have one origin, as in production.
const daemon = process.env.CONVOKE_URL ?? "http://127.0.0.1:7700";
const data = Object.fromEntries(["/v1", "/health", "/realtime", "/dashboard/session"].map((path) => [path, { target: daemon, ws: true }]));

export default defineConfig({
  base: "/dashboard/",
  oxc: { jsx: { runtime: "automatic", importSource: "preact" } },
  build: {
    target: "es2022",
    // The built page is committed: nothing in it may depend on the machine or the day.
    sourcemap: false,
    modulePreload: { polyfill: false },
    assetsInlineLimit: 0,
    reportCompressedSize: false,
  },
  server: { proxy: data },
  test: { include: ["tests/unit/**/*.test.ts"], environment: "node" },
});
