import { light, startApp } from "./lib/ui.ts";

await startApp("Pages");
// This page has no channel: it is live after the sign-in.
light("live");
