// The address is the state: what is looked at is in the path, how it is looked at in the query.
import { computed, signal } from "@preact/signals";

export const BASE = "/dashboard";
export const TABS = ["why", "timeline", "events", "data", "steps", "parts", "budget"] as const;
export type Tab = (typeof TABS)[number];

export type Route =
  | { screen: "switchboard"; org: string }
  | { screen: "tasks"; org: string }
  | { screen: "inbox"; org: string }
  | { screen: "task"; org: string; id: string; tab: Tab }
  | { screen: "agents"; org: string }
  | { screen: "agent"; org: string; id: string }
  | { screen: "lanes"; org: string }
  | { screen: "triggers"; org: string }
  | { screen: "spend"; org: string }
  | { screen: "channels"; org: string }
  | { screen: "channel"; org: string; topic: string }
  | { screen: "system"; org: string }
  | { screen: "find"; id: string }
  | { screen: "start" }
  | { screen: "missing" };

const address = signal({ path: location.pathname, search: location.search });

export const route = computed<Route>(() => parse(address.value.path));
export const query = computed(() => new URLSearchParams(address.value.search));

export function parse(path: string): Route {
  const parts = path.replace(/^\/dashboard\/?/, "").split("/").filter(Boolean).map(decode);
  const [org, screen, id, tab] = parts;
  if (org === undefined) return { screen: "start" };
  if (org === "t" && screen !== undefined && parts.length === 2) return { screen: "find", id: screen };
  if (screen === undefined) return { screen: "switchboard", org };
  if (screen === "tasks" && id === undefined) return { screen: "tasks", org };
  if (screen === "inbox" && id === undefined) return { screen: "inbox", org };
  if (screen === "tasks" && id !== undefined && parts.length <= 4) {
    const found = TABS.find((known) => known === (tab ?? "why"));
    if (found) return { screen: "task", org, id, tab: found };
  }
  if ((screen === "lanes" || screen === "triggers" || screen === "spend") && id === undefined) return { screen, org };
  if (screen === "channels" && id === undefined) return { screen: "channels", org };
  if (screen === "channels" && id !== undefined && parts.length === 3) return { screen: "channel", org, topic: id };
  if (screen === "system" && id === undefined) return { screen: "system", org };
  if (screen === "agents" && id === undefined) return { screen: "agents", org };
  if (screen === "agents" && id !== undefined && parts.length === 3) return { screen: "agent", org, id };
  return { screen: "missing" };
}

function decode(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

/** The address of a screen. */
export function href(...parts: string[]): string {
  return [BASE, ...parts.map(encodeURIComponent)].join("/");
}

function changed(): void {
  address.value = { path: location.pathname, search: location.search };
}

export function go(to: string, { replace = false } = {}): void {
  if (replace) history.replaceState(null, "", to);
  else history.pushState(null, "", to);
  changed();
  if (!replace) scrollTo(0, 0);
}

/** Changes parameters of the query; an empty value removes one. Others, also unknown ones, stay. */
export function setQuery(changes: Record<string, string>, { replace = false } = {}): void {
  const params = new URLSearchParams(location.search);
  for (const [name, value] of Object.entries(changes)) value ? params.set(name, value) : params.delete(name);
  const search = params.toString();
  go(location.pathname + (search ? `?${search}` : ""), { replace });
}

/** Follows links within the page without loading it again. */
export function listen(): void {
  addEventListener("popstate", changed);
  document.addEventListener("click", (event) => {
    if (event.defaultPrevented || event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
    const link = (event.target as Element | null)?.closest?.("a");
    if (!link || link.target || link.origin !== location.origin || !link.pathname.startsWith(BASE) || link.hash) return;
    event.preventDefault();
    go(link.pathname + link.search);
  });
}
