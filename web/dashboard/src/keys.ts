// Keys for everything. Single letters do nothing in fields and can be turned off.
import { signal } from "@preact/signals";
import { isUtc } from "./format.ts";
import { isPaused, pause } from "./live.ts";
import { isPaletteOpen, setUtc } from "./palette.tsx";
import { TABS, go, href, query, route } from "./route.ts";
import { shownIds } from "./screens/Tasks.tsx";
import { nextTheme } from "./theme.ts";

export const hasLetters = signal(localStorage.getItem("letters") !== "off");
export const isHelpOpen = signal(false);

export const HELP: readonly (readonly [string, string])[] = [
  ["Ctrl K, ⌘ K, :", "go to a screen, agent, view or task"],
  ["g then s, t, i, a, l, w, p, c, h", "go to Switchboard, Tasks, Inbox, Agents, Lanes, Triggers, Spend, Channels, System"],
  ["x, Shift x", "select the task of the row, or up to it"],
  ["/", "filter of the tasks"],
  ["j k, ↓ ↑", "move in the list"],
  ["Enter", "open the task"],
  ["i", "inspector: the task of the row beside the list"],
  ["[ ]", "newer or older task of the list"],
  ["1 to 7, w", "tabs of a task, Why"],
  ["c, r, b, a", "cancel, requeue or set the budget of the task, answer it; each asks first"],
  ["d", "drain or resume the agent; it asks first"],
  ["p", "pause, and follow again"],
  ["z", "local time or UTC"],
  ["t", "theme: system, light, dark"],
  ["?", "this help"],
  ["Esc", "back to the list; leave the wall"],
];

export function setLetters(on: boolean): void {
  hasLetters.value = on;
  localStorage.setItem("letters", on ? "on" : "off");
}

let isGoing = 0;

export function listen(org: () => string | null): void {
  addEventListener("keydown", (event) => {
    const target = event.target as HTMLElement;
    const isField = target.matches?.("input, textarea, select, [contenteditable]");
    if (event.key === "Escape" && isField) return target.blur();
    if ((event.metaKey || event.ctrlKey) && event.key.toLowerCase() === "k" && org()) {
      event.preventDefault();
      if (!document.querySelector("dialog[open]")) isPaletteOpen.value = true;
      return;
    }
    if (event.metaKey || event.ctrlKey || event.altKey || isField || document.querySelector("dialog[open]")) return;
    const current = org();
    if (!current) return;
    if (event.key === "Escape") return back(current);
    if (!hasLetters.value) return;
    if (act(event.key, current)) event.preventDefault();
  });
}

function back(org: string): void {
  const { screen } = route.value;
  if (screen === "switchboard" && query.value.get("wall")) go(href(org));
  else if (screen === "task") go(href(org, "tasks"));
  else if (screen === "agent") go(href(org, "agents"));
  else if (screen === "channel") go(href(org, "channels"));
}

function act(key: string, org: string): boolean {
  if (isGoing && performance.now() - isGoing < 1500) {
    isGoing = 0;
    const to = { s: href(org), t: href(org, "tasks"), i: href(org, "inbox"), l: href(org, "lanes"), w: href(org, "triggers"), p: href(org, "spend"), c: href(org, "channels"), h: href(org, "system"), a: href(org, "agents") }[key];
    if (to) go(to);
    return to !== undefined;
  }
  const current = route.value;
  switch (key) {
    case "g": isGoing = performance.now(); return true;
    case "?": isHelpOpen.value = true; return true;
    case ":": isPaletteOpen.value = true; return true;
    case "p": pause(!isPaused.value); return true;
    case "z": setUtc(!isUtc.value); return true;
    case "t": nextTheme(); return true;
    case "/": return focusFilter(org);
    case "j": case "k": return focusList();
  }
  const button = document.querySelector<HTMLButtonElement>(`main button[data-letter="${CSS.escape(key)}"]:not(:disabled)`);
  if (button) {
    button.focus();
    button.click();
    return true;
  }
  if (current.screen !== "task") return false;
  const answer = key === "a" ? document.querySelector<HTMLElement>(".answer :is(input, textarea, button)") : null;
  if (answer) {
    answer.focus();
    return true;
  }
  const tab = key === "w" ? "why" : TABS[Number(key) - 1];
  if (tab) go(tab === "why" ? href(org, "tasks", current.id) : href(org, "tasks", current.id, tab));
  const step = { "[": -1, "]": 1 }[key];
  const at = shownIds.value.indexOf(current.id);
  const next = step && at >= 0 ? shownIds.value[at + step] : undefined;
  if (next) go(href(org, "tasks", next));
  return Boolean(tab || next);
}

function focusFilter(org: string): boolean {
  if (route.value.screen !== "tasks") go(href(org, "tasks"));
  // After the microtask that draws the list, and before the next event: the filter gets each key that follows.
  queueMicrotask(() => document.querySelector<HTMLElement>("[data-focus=filter]")?.focus());
  return true;
}

function focusList(): boolean {
  const row = document.querySelector<HTMLElement>("tr[tabindex='0']");
  row?.focus();
  return row !== null;
}
