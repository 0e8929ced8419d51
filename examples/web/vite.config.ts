import { renameSync, rmSync } from "node:fs";
import { fileURLToPath } from "node:url";
import type { Plugin } from "vite";
import { defineConfig } from "vitest/config";

const pages = ["chat", "call", "editor", "board", "analytics", "console"];
// In development: `npx vite` beside `make web`, which serves the data.
const data = Object.fromEntries(["/rest", "/realtime", "/session", "/config"].map((path) => [path, { target: "http://127.0.0.1:8080", ws: true }]));

// The head that all pages share. A page's own has its title and its style, which comes after this one.
const head: Plugin = {
  name: "shared-head",
  transformIndexHtml: {
    order: "pre",
    handler: () => [
      { tag: "meta", attrs: { charset: "utf-8" } },
      { tag: "meta", attrs: { name: "viewport", content: "width=device-width, initial-scale=1, interactive-widget=resizes-content" } },
      { tag: "meta", attrs: { name: "color-scheme", content: "light dark" } },
      { tag: "link", attrs: { rel: "icon", href: "data:," } },
      { tag: "link", attrs: { rel: "stylesheet", href: "/styles/app.css" } },
    ],
  },
};

const dist = fileURLToPath(new URL("dist", import.meta.url));
const built = `${dist}.${process.pid}`;
// The build is complete when it takes its place: another one, or a server that starts, never meets half of it.
const swap: Plugin = {
  name: "swap",
  apply: "build",
  closeBundle: () => {
    for (;;)
      try {
        rmSync(dist, { recursive: true, force: true });
        return renameSync(built, dist);
      } catch (error) {
        // Another build took the place between the two steps.
        if (!["ENOTEMPTY", "EEXIST"].includes((error as NodeJS.ErrnoException).code ?? "")) throw error;
      }
  },
};

export default defineConfig({
  plugins: [head, swap],
  appType: "mpa",
  build: {
    outDir: built,
    target: "es2022",
    sourcemap: false,
    modulePreload: { polyfill: false },
    rollupOptions: { input: { index: "index.html", ...Object.fromEntries(pages.map((page) => [page, `${page}/index.html`])) } },
  },
  server: { proxy: data },
  test: { include: ["tests/unit/**/*.test.ts"], environment: "node", testTimeout: 60_000, hookTimeout: 180_000 },
});
