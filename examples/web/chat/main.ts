import { RealTimeChatManager, type Shown } from "../lib/RealTimeChatManager.ts";
import { PresenceManager, presenceKey } from "../lib/PresenceManager.ts";
import { hash } from "../lib/ids.ts";
import { renderList } from "../lib/list.ts";
import { avatar, find, framed, guardLeaving, h, notice, readAtStart, showPeople, showProblems, showSending, startApp, time } from "../lib/ui.ts";

const EMOJI = ["👍", "❤️", "😂", "🎉", "👀"];
/** Messages in the page at once; older ones are shown on demand. */
const SHOWN_STEP = 200;

const app = await startApp("Chat");
const { nameOf } = app;

const room = new URLSearchParams(location.search).get("room") ?? "lobby";
const chat = new RealTimeChatManager(app.client, app.rooms, room, app.me.id, app.tab, presenceKey(app.me.id, app.tab));
const presence = new PresenceManager(chat.room, { user: app.me.id, tab: app.tab, name: app.me.name });

const list = find<HTMLOListElement>(".messages");
const scroll = find(".scroll");
const form = find<HTMLFormElement>(".write");
const input = find<HTMLTextAreaElement>(".write textarea");
const newer = find<HTMLButtonElement>(".newer");
find(".title").textContent = `# ${room}`;

let shown = SHOWN_STEP;
let gap: { before: string; count: number } | undefined;
let editing: number | undefined;

const keyOf = (message: Shown): string => `${message.author} ${message.client_id}`;

function showOlder(): void {
  if (shown >= chat.list().length) return;
  const height = scroll.scrollHeight;
  shown += SHOWN_STEP;
  render();
  // Keeps the visible messages in place.
  scroll.scrollTop += scroll.scrollHeight - height;
}

function render(): void {
  const all = chat.list();
  const atEnd = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 40;
  const items = all.slice(-shown);
  const previous = new Map(items.map((message, i) => [keyOf(message), items[i - 1]]));
  const first = (message: Shown): boolean => {
    const before = previous.get(keyOf(message));
    return !before || before.author !== message.author || gap?.before === keyOf(message);
  };
  renderList(
    list,
    items,
    keyOf,
    (message) => JSON.stringify([message.state, message.body, message.edited_at, message.deleted_at, message.id, first(message), reactions(message), gap?.before === keyOf(message), editing === message.id]),
    (message, element) => draw(message, element, first(message)),
  );
  find(".older").hidden = shown >= all.length;
  find(".empty").hidden = all.length > 0;
  newer.hidden = atEnd;
  if (atEnd) scroll.scrollTop = scroll.scrollHeight;
  const typists = chat.typing.users().map(nameOf);
  find(".typing").textContent = typists.length ? `${typists.join(", ")} ${typists.length === 1 ? "is" : "are"} typing…` : "";
  // For tests: the displayed messages as a count and a hash, in order.
  const data = document.documentElement.dataset;
  data.count = String(all.length);
  data.hash = String(hash(all.map((message) => `${message.id} ${message.author} ${message.body} ${reactions(message)}`).join("\n")));
}

const reactions = (message: Shown): string =>
  message.id === undefined ? "" : chat.reactions.of(message.id).map(({ emoji, users }) => `${emoji}${users.join("+")}`).join(" ");

function draw(message: Shown, element: HTMLElement, first: boolean): void {
  element.className = `message${first ? " first" : ""}`;
  element.dataset.state = message.state;
  // A tap on a phone focuses the message, which shows its tools.
  element.tabIndex = -1;
  if (gap?.before === keyOf(message))
    element.append(h("div", { class: "gap" }, `${gap.count} message${gap.count === 1 ? "" : "s"} while you were away`));
  if (first)
    element.append(
      avatar(message.author, nameOf(message.author)),
      h("div", { class: "by" }, h("bdi", {}, nameOf(message.author)), message.created_at ? h("time", { datetime: message.created_at }, time(message.created_at)) : undefined),
    );
  else element.append(h("span"));
  element.append(message.id !== undefined && editing === message.id ? editor(message) : body(message));
  const tools = h("span", { class: "tools" });
  if (message.state === "stored" && !message.deleted_at && message.id !== undefined) addTools(tools, message, message.id);
  if (message.state === "failed") tools.append(button("Retry", () => chat.outbox.retry(message.client_id), "Send again"));
  element.append(tools, marks(message));
}

function body(message: Shown): HTMLElement {
  const text = message.deleted_at ? "deleted" : message.body;
  const state = { sending: "sending…", failed: message.reason ?? "failed", echo: "…", stored: message.edited_at && !message.deleted_at ? "edited" : "" }[message.state];
  return h("div", { class: message.deleted_at ? "body gone" : "body", dir: "auto" }, text, state ? h("span", { class: "state" }, state) : undefined);
}

function editor(message: Shown): HTMLElement {
  const field = h("textarea", { "aria-label": "Edit message", dir: "auto" });
  field.value = message.body;
  const save = (): void => {
    const problem = message.id === undefined ? undefined : chat.edit(message.id, field.value.trim() || message.body);
    if (problem) return notice(problem, "problem");
    editing = undefined;
    render();
  };
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey) event.preventDefault();
    if (event.key === "Enter" && !event.shiftKey) save();
    if (event.key === "Escape") {
      editing = undefined;
      render();
    }
  });
  queueMicrotask(() => field.focus());
  return h("div", { class: "row body" }, field, h("button", { type: "button", onclick: save }, "Save"));
}

const button = (text: string, click: () => void, label: string): HTMLElement =>
  h("button", { type: "button", class: "quiet", "aria-label": label, title: label, onclick: click }, text);

function addTools(tools: HTMLElement, message: Shown, id: number): void {
  for (const emoji of EMOJI.slice(0, 3)) tools.append(button(emoji, () => chat.reactions.toggle(id, emoji), `React ${emoji}`));
  if (message.author !== app.me.id) return;
  const tell = (problem: string | undefined): void => {
    if (problem) notice(problem, "problem");
  };
  tools.append(button("✎", () => ((editing = id), render()), "Edit"), button("🗑", () => tell(chat.delete(id)), "Delete"));
}

function marks(message: Shown): HTMLElement {
  const box = h("div", { class: "reactions" });
  const { id } = message;
  if (id === undefined || message.deleted_at) return box;
  for (const { emoji, users, mine } of chat.reactions.of(id)) {
    const label = `${emoji} ${users.length}`;
    box.append(h("button", { type: "button", "aria-pressed": String(mine), title: users.map(nameOf).join(", "), onclick: () => chat.reactions.toggle(id, emoji) }, label));
  }
  return box;
}

const schedule = framed(render);

const countSending = showSending(() => chat.outbox.unsettled().length + chat.reactions.waiting);
chat.on("change", schedule);
chat.outbox.on("change", countSending);
chat.reactions.on("change", countSending);
chat.on("problem", (text) => notice(text, "problem"));
chat.on("missed", (count) => {
  const newest = chat.list().filter((message) => message.author !== app.me.id).slice(-count)[0];
  if (newest) gap = { before: keyOf(newest), count };
  schedule();
});
showProblems(chat.room, presence);
showPeople(app, presence);
presence.on("leave", (tabs) => tabs.forEach(({ tab }) => chat.typing.left(tab)));

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const problem = chat.send(input.value);
  if (problem) return notice(problem, "problem");
  input.value = "";
  scroll.scrollTop = scroll.scrollHeight;
});
input.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});
input.addEventListener("input", () => (input.value.trim() ? chat.typing.say() : chat.typing.stop()));
newer.addEventListener("click", () => (scroll.scrollTop = scroll.scrollHeight));
scroll.addEventListener("scroll", () => {
  newer.hidden = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 40;
  if (scroll.scrollTop === 0) showOlder();
});
find(".older").addEventListener("click", showOlder);
window.addEventListener("pagehide", () => chat.typing.stop());
guardLeaving(() => chat.outbox.unsettled().length > 0);

// The rooms of this person.
const mine = await readAtStart(() => app.client.from("members").select("topic").eq("user_id", app.me.id).order("topic").returns<{ topic: string }[]>());
const rooms = mine.map(({ topic }) => topic).filter((topic) => topic.startsWith("chat:")).map((topic) => topic.slice(5));
renderList(find(".rooms"), rooms, (name) => name, () => "", (name, element) =>
  element.append(h("a", { href: `?room=${encodeURIComponent(name)}`, ...(name === room ? { "aria-current": "page" } : {}) }, `# ${name}`)),
);
