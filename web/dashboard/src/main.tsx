import { render } from "preact";
import { App } from "./app.tsx";
import { listen as listenToKeys } from "./keys.ts";
import { watch } from "./live.ts";
import { listen as listenToLinks } from "./route.ts";
import { session, start } from "./session.ts";
import { applyTheme } from "./theme.ts";

applyTheme();
listenToLinks();
listenToKeys(() => (session.value.is === "in" ? session.value.session.org : null));
watch();
const root = document.getElementById("app");
if (root) {
  root.textContent = "";
  render(<App />, root);
}
void start();
