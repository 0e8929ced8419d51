// Shared user interface: the head with the connection status, sign-in, notices, small DOM helpers.
import type { SupabaseClient } from "@supabase/supabase-js";
import { hash } from "./ids.ts";
import { measureSkew, skewText } from "./clock.ts";
import { renderList } from "./list.ts";
import { RealtimeConnectionManager } from "./RealtimeConnectionManager.ts";
import { rows, type RestAnswer } from "./rest.ts";
import { loadConfig, makeClient, SessionError, signIn, signOut, tabId, Tokens, type Config, type Person } from "./session.ts";
import { store, stored } from "./storage.ts";
import { untilAnswered } from "./untilAnswered.ts";
import type { PresenceManager } from "./PresenceManager.ts";
import type { Room, RoomStatus } from "./room.ts";

type Child = Node | string | undefined | false;
type Props = Record<string, string | number | boolean | undefined | ((event: never) => void)>;

/** Creates an element. Text is set as text, never as HTML; `on…` members are listeners. */
export function h<K extends keyof HTMLElementTagNameMap>(tag: K, props: Props = {}, ...children: Child[]): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (typeof value === "function") element.addEventListener(name.replace(/^on/, "").toLowerCase(), value as EventListener);
    else if (typeof value === "boolean") element.toggleAttribute(name, value);
    else if (value !== undefined) element.setAttribute(name, String(value));
  }
  for (const child of children) if (child) element.append(child);
  return element;
}

/** Returns an element of the page's HTML; throws if it is missing. */
export function find<T extends HTMLElement = HTMLElement>(selector: string): T {
  const element = document.querySelector<T>(selector);
  if (!element) throw new Error(`the page has no ${selector}`);
  return element;
}

/** A person's hue, the same on every page. It is always shown together with the name. */
export const hue = (id: string): number => Math.round(hash(id) * 137.508) % 360;

// A grapheme: "👩‍🚀" is one, of several code points.
const letters = new Intl.Segmenter(undefined, { granularity: "grapheme" });
const firstLetter = (name: string): string => letters.segment(name)[Symbol.iterator]().next().value?.segment ?? "?";

/** Returns a round mark with a person's initial. */
export function avatar(id: string, name: string): HTMLElement {
  const mark = h("span", { class: "avatar", "aria-hidden": "true" }, firstLetter(name).toUpperCase());
  mark.style.setProperty("--hue", String(hue(id)));
  return mark;
}

/** Shows a sentence at the bottom; `problem` stays until it is dismissed. */
export function notice(text: string, kind: "info" | "problem" = "info"): void {
  const box = document.querySelector(".notices") ?? document.body.appendChild(h("div", { class: "notices", role: "status" }));
  const same = [...box.children].find((child) => child.getAttribute("data-text") === text);
  same?.remove();
  const item = h("div", { class: `notice ${kind}`, "data-text": text }, h("span", {}, text));
  item.append(h("button", { type: "button", class: "quiet", "aria-label": "Dismiss", onclick: () => item.remove() }, "✕"));
  box.append(item);
  // Old notices are removed, so that a repeated fault does not cover the page.
  while (box.children.length > 4) box.firstElementChild?.remove();
  if (kind === "info") setTimeout(() => item.remove(), 5000);
}

export interface App {
  client: SupabaseClient;
  rooms: RealtimeConnectionManager;
  me: Person;
  org: string;
  tab: string;
  tokens: Tokens;
  config: Config;
  /** Returns a person's name; the id of a person who is not in the list. */
  nameOf: (id: string) => string;
}

const PAGES = [
  ["chat", "Chat"], ["call", "Call"], ["editor", "Editor"],
  ["board", "Board"], ["analytics", "Analytics"], ["console", "Console"],
] as const;

const SAYS: Record<RoomStatus, string> = {
  connecting: "connecting", loading: "catching up", live: "live", down: "reconnecting", refused: "not permitted", closed: "closed",
};

/**
 * Starts a page: signs in if no user is signed in, draws the head, and returns what the page works with.
 * @param agent an id for the agent's token of the console
 */
export async function startApp(title: string, agent?: (me: Person) => string): Promise<App> {
  head(title);
  const config = await untilAnswered(loadConfig, away);
  const { me, org } = await signedIn(config);
  const tokens = new Tokens(agent?.(me));
  tokens.signedOut = (reason) => notice(`You are no longer signed in (${reason}). Reload this page to sign in; what is not sent yet stays here until then.`, "problem");
  const client = makeClient(location.origin, config.anonKey, tokens);
  const rooms = new RealtimeConnectionManager(client);
  rooms.on("status", light);
  who(me);
  void measureSkew().then((ms) => {
    if (skewText(ms)) notice(skewText(ms));
  }, () => undefined);
  window.addEventListener("offline", () => notice("You are offline. What you do is kept and sent later."));
  const names = new Map(config.people.map(({ id, name }) => [id, name.replace(/ \(.*/, "")]));
  return { client, rooms, me, org, tab: tabId, tokens, config, nameOf: (id) => names.get(id) ?? id };
}

/** Shows the state of the connection in the head and in `data-live`, which tests wait for. */
export function light(status: RoomStatus, detail = ""): void {
  document.documentElement.dataset.live = status;
  const element = document.querySelector(".light");
  if (!element) return;
  element.setAttribute("data-status", status);
  element.setAttribute("title", detail);
  element.textContent = SAYS[status];
}

// Shows that the server is down; the page starts when it is back.
function away(error: Error): void {
  light("down", error.message);
  notice("The server does not answer. This page starts as soon as it does.");
}

async function signedIn(config: Config): Promise<{ me: Person; org: string }> {
  const tokens = new Tokens();
  const who = (): Promise<{ person: Person; org: string }> =>
    untilAnswered(() => tokens.who(), (error) => {
      if (error instanceof SessionError && error.status === 401) throw error;
      away(error);
    });
  // Asks for a person only if the server answers 401; waits for a server that does not answer.
  const { person, org } = await who().catch(() => askWho(config).then(who));
  return { me: person, org };
}

/** Reads data that a page needs to start, and retries until it succeeds. */
export const readAtStart = <T>(read: () => PromiseLike<RestAnswer<T>>): Promise<T> => untilAnswered(async () => rows(await read()), away);

/** Shows the people of a room with the number of their tabs in `.people`. */
export function showPeople({ nameOf }: App, presence: PresenceManager): void {
  presence.on("sync", () =>
    renderList(find(".people"), presence.people(), (person) => person.user, (person) => String(person.tabs.length), ({ user, tabs }, element) => {
      element.append(avatar(user, nameOf(user)), nameOf(user));
      if (tabs.length > 1) element.append(h("span", { class: "soft" }, `${tabs.length} tabs`));
    }),
  );
}

/** Shows a refused room, messages of the server about it, and a presence that failed. */
export function showProblems(room: Room, presence: PresenceManager): void {
  room.on("status", (status, detail) => {
    if (status === "refused") notice(detail, "problem");
  });
  room.on("system", ({ message }) => notice(message, "problem"));
  presence.on("failed", (text) => notice(text, "problem"));
}

/**
 * Shows the number of writes without an answer in `data-sending`, which tests wait for; returns a function to call when it
 * changes. At once and not in the next frame: a test that reads it after a click must not get the number of before.
 */
export function showSending(count: () => number): () => void {
  const show = (): void => void (document.documentElement.dataset.sending = String(count()));
  show();
  return show;
}

/** Asks before the tab is closed while `atRisk` returns true. */
export function guardLeaving(atRisk: () => boolean): void {
  window.addEventListener("beforeunload", (event) => {
    if (atRisk()) event.preventDefault();
  });
}

/** Shows the sign-in dialog; resolves after the sign-in. */
export function askWho(config: Config): Promise<void> {
  return new Promise((resolve) => {
    const code = config.invite ? h("input", { name: "invite", autocomplete: "off", placeholder: "Invite code", "aria-label": "Invite code", required: true }) : undefined;
    const problem = h("p", { class: "problem", role: "alert" });
    const choose = (id: string) => async (): Promise<void> => {
      try {
        await signIn(id, code?.value.trim());
        dialog.close();
        dialog.remove();
        resolve();
      } catch (error) {
        problem.textContent = (error as Error).message;
      }
    };
    const people = config.people.map(({ id, name }) =>
      h("button", { type: "button", class: "person", "data-person": id, onclick: choose(id) }, avatar(id, name), h("span", {}, name)),
    );
    const dialog = h(
      "dialog",
      { class: "sign-in", "aria-labelledby": "who-title" },
      h("h2", { id: "who-title" }, "Who are you?"),
      h("p", {}, "Choose a person. In a second browser, choose another one."),
      code,
      h("div", { class: "choices" }, ...people),
      problem,
    );
    // The page needs a person, so Escape does not close the dialog.
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    document.body.append(dialog);
    dialog.showModal();
  });
}

function head(title: string): void {
  document.title = `${title} · Convoke`;
  const here = location.pathname.split("/")[1];
  const links = PAGES.map(([path, name]) =>
    h("a", { href: `/${path}/`, ...(path === here ? { "aria-current": "page" } : {}) }, name),
  );
  document.body.prepend(
    h(
      "header",
      { class: "head" },
      h("a", { class: "brand", href: "/", "aria-label": "Convoke, all pages" }, "convoke"),
      h("nav", { "aria-label": "Pages" }, ...links),
      h("span", { class: "light", "data-status": "connecting", role: "status" }, "connecting"),
      themeButton(),
      h("span", { class: "who" }),
    ),
  );
  document.querySelector(".head [aria-current]")?.scrollIntoView({ inline: "center", block: "nearest" });
  const theme = stored("theme");
  if (theme) document.documentElement.dataset.theme = theme;
}

function who(me: Person): void {
  const leave = async (): Promise<void> => {
    await signOut();
    location.reload();
  };
  find(".who").append(avatar(me.id, me.name), h("button", { type: "button", class: "quiet", "aria-label": `${me.name}: sign out`, onclick: leave }, me.name));
}

function themeButton(): HTMLElement {
  const next: Record<string, string> = { "": "dark", dark: "light", light: "" };
  const button = h("button", { type: "button", class: "quiet theme", "aria-label": "Theme" });
  const show = (): void => {
    button.textContent = { dark: "☾", light: "☀" }[document.documentElement.dataset.theme ?? ""] ?? "◐";
    button.title = `Theme: ${document.documentElement.dataset.theme || "system"}`;
  };
  button.addEventListener("click", () => {
    const theme = next[document.documentElement.dataset.theme ?? ""] ?? "";
    document.documentElement.dataset.theme = theme;
    store("theme", theme || undefined);
    show();
  });
  queueMicrotask(show);
  return button;
}

/** Returns a clock time of a row, in the reader's own zone. */
export const time = (iso: string): string => new Date(iso).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });

/**
 * Returns a function that draws once for all calls before the next frame. A hidden page has no frames: it draws four
 * times a second, so that its counts are current when it becomes visible.
 */
export function framed(draw: () => void): () => void {
  let waiting = false;
  const run = (): void => {
    waiting = false;
    draw();
  };
  return () => {
    if (waiting) return;
    waiting = true;
    if (document.hidden) setTimeout(run, 250);
    else requestAnimationFrame(run);
  };
}
