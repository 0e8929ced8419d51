import { AgentCommunicationManager, type Assignment, type Requested, type TaskRequest } from "../lib/AgentCommunicationManager.ts";
import { AgentPresenceManager, type Profile } from "../lib/AgentPresenceManager.ts";
import { renderList } from "../lib/list.ts";
import { fetchWithTimeout } from "../lib/session.ts";
import { avatar, find, framed, h, notice, startApp } from "../lib/ui.ts";

/** A person needs longer than a program to accept. */
const CONFIRM = "20s";
const LEASE = "20s";

const app = await startApp("Console", (me) => me.id);
const agents = new AgentCommunicationManager(app.rooms, app.me.id, app.org, (id) => read<Record<string, unknown>>(`/v1/tasks/${encodeURIComponent(id)}`));
const presence = new AgentPresenceManager(agents.own, agents.orgRoom);
const whys = new Map<string, Why>();

interface Why {
  rounds?: { round: number; winner?: string; because?: string; offers?: WhyOffer[] }[];
  attempts?: { agent_id: string; state: string }[];
}
interface WhyOffer {
  agent_id: string;
  state: string;
  cost_microdollars: number;
  eta_ms: number;
  confidence: number;
}

const dollars = (micro: number): string => `$${(micro / 1e6).toLocaleString(undefined, { minimumFractionDigits: 4, maximumFractionDigits: 6 })}`;
const seconds = (until: number): string => `${Math.max(0, Math.ceil((until - Date.now()) / 1000))} s`;
const button = (text: string, click: () => void, kind = ""): HTMLButtonElement => h("button", { type: "button", class: kind, onclick: click }, text);
const text = (value: unknown): string => (typeof value === "string" ? value : JSON.stringify(value, null, 1) ?? "");

function render(): void {
  const requests = [...agents.requests.values()].reverse().slice(0, 10);
  renderList(find(".requests"), requests, (one) => `${one.id} ${one.round}`, (one) => `${one.answer} ${JSON.stringify(one.offer)} ${Boolean(whys.get(one.id))}`, drawRequest);
  find(".no-requests").hidden = requests.length > 0;
  const work = [...agents.assignments.values()].reverse().slice(0, 10);
  renderList(find(".work"), work, (one) => one.assignment_id, (one) => `${one.state} ${one.note}`, drawWork);
  find(".no-work").hidden = work.length > 0;
  const asked = [...agents.requested.values()].reverse().slice(0, 10);
  renderList(
    find(".asked"), asked, (one) => one.command,
    (one) => JSON.stringify([one.state, one.reason, [...one.offers], one.winner, one.epoch, one.result, one.question, whys.get(one.id) ?? 0]),
    drawRequested,
  );
  find(".no-asked").hidden = asked.length > 0;
  renderList(find(".messages"), agents.messages.slice(-50), (one) => one.id, (one) => one.refused, (one, element) =>
    element.append(
      h("strong", {}, one.from), ` → ${one.to}: ${one.text}`,
      one.refused ? h("div", { class: "refused" }, one.refused) : "",
    ),
  );
  const roster = presence.roster();
  renderList(find(".roster"), roster, (one) => one.agent, (one) => JSON.stringify(one), (one, element) => {
    element.append(avatar(one.agent, one.agent), h("span", {}, one.agent), tag(one.activity));
    if (one.progress !== undefined && one.progress < 1) element.append(h("progress", { value: one.progress, max: 1, "aria-label": `Progress of ${one.agent}` }));
  });
  renderList(find("#targets"), [`org:${app.org}`, ...roster.map((one) => `agent:${one.agent}`)], (name) => name, () => "", (name, element) => element.setAttribute("value", name), "option");
  document.documentElement.dataset.roster = roster.map((one) => one.agent).join(" ");
}

const GOOD = new Set(["completed", "idle", "done", "present"]);
const BAD = new Set(["failed", "canceled", "refused", "lost", "not sent"]);
const WAIT = new Set(["waiting", "open", "awarded", "blocked"]);
function tag(state: string): HTMLElement {
  const kind = GOOD.has(state) ? "good" : BAD.has(state) ? "bad" : WAIT.has(state) ? "wait" : "busy";
  return h("span", { class: "tag", "data-state": kind }, state);
}

function drawRequest(one: TaskRequest, element: HTMLElement): void {
  element.className = "card";
  element.append(h("div", { class: "title" }, preview(one.preview) || one.kind));
  const said = { open: "", offered: "", refused: "You said no.", over: "The round is over." }[one.answer];
  const offered = one.offer && `You offered ${dollars(one.offer.cost)}, ${one.offer.eta_ms / 1000} s, ${Math.round(one.offer.confidence * 100)} %.`;
  element.append(h("div", { class: "soft" }, [said, offered].filter(Boolean).join(" ")));
  if (one.answer === "over") {
    const why = whys.get(one.id);
    element.append(why ? whyTable(why) : button("Why?", () => void ask(one.id)));
    return;
  }
  if (one.answer === "refused") return;
  const form = h(
    "form", { class: "row", "aria-label": "Offer" },
    field("Cost, $", "cost", "0.0004", { step: "0.0001", min: "0" }),
    field("Seconds", "eta", "20", { min: "1" }),
    field("Sure, %", "sure", "80", { min: "0", max: "100" }),
    h("button", { class: "primary", type: "submit" }, one.answer === "offered" ? "Offer again" : "Offer"),
    button("No", () => void agents.refuse(one.id)),
    h("span", { class: "count", "data-until": one.closesAt }, seconds(one.closesAt)),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const data = new FormData(form);
    void agents.offer(one.id, {
      cost: Math.round(Number(data.get("cost")) * 1e6),
      eta_ms: Math.round(Number(data.get("eta")) * 1000),
      confidence: Number(data.get("sure")) / 100,
    });
  });
  element.append(form);
}

function field(label: string, name: string, value: string, limits: Record<string, string>): HTMLElement {
  return h("label", { class: "field" }, label, h("input", { name, type: "number", value, required: true, ...limits }));
}

/** The input as people read it: our own requests have one member, `text`. */
function preview(input: unknown): string {
  try {
    const parsed = (typeof input === "string" ? JSON.parse(input) : input) as { text?: unknown } | null;
    return typeof parsed?.text === "string" ? parsed.text : text(input);
  } catch {
    return text(input);
  }
}

function drawWork(one: Assignment, element: HTMLElement): void {
  element.className = "card";
  element.dataset.state = one.state;
  element.append(h("div", { class: "row" }, h("span", { class: "title grow" }, preview(one.input) || one.kind), tag(one.state), h("span", { class: "soft" }, `epoch ${one.epoch}`)));
  if (one.note) element.append(h("div", { class: one.state === "lost" ? "problem" : "soft" }, one.note));
  if (one.state === "awarded")
    element.append(
      h("div", { class: "row" },
        button("Accept", () => void agents.accept(one), "primary"),
        button("Refuse", () => void agents.decline(one, "not now")),
        h("span", { class: "count", "data-until": one.confirmBy }, seconds(one.confirmBy))),
    );
  if (one.state === "working") element.append(...workTools(one));
}

function workTools(one: Assignment): HTMLElement[] {
  const slider = h("input", { type: "range", min: 0, max: 100, value: Math.round(one.progress * 100), "aria-label": "Progress, %", class: "grow" });
  slider.addEventListener("change", () => void agents.progress(one, Number(slider.value) / 100, "working"));
  const result = h("textarea", { rows: 2, "aria-label": "Result", placeholder: "Result" });
  const answers = one.answers ? h("pre", {}, `Answers: ${text(one.answers)}`) : undefined;
  const tools = h(
    "div", { class: "row" },
    button("Finish", () => void agents.finish(one, { text: result.value }), "primary"),
    button("Ask the requester", () => void (result.value.trim() ? agents.ask(one, result.value.trim()) : notice("Write the question into the field first.", "problem"))),
    button("Give up", () => void agents.fail(one, result.value || "gave up"), "danger"),
  );
  return [...(answers ? [answers] : []), h("label", { class: "row" }, "Progress", slider), result, tools];
}

function drawRequested(one: Requested, element: HTMLElement): void {
  element.className = "card";
  element.dataset.state = one.state;
  element.append(h("div", { class: "row" }, h("span", { class: "title grow" }, one.text), tag(one.state), one.epoch ? h("span", { class: "soft" }, `epoch ${one.epoch}`) : undefined));
  if (one.reason) element.append(h("div", { class: "soft" }, one.reason));
  const why = whys.get(one.id);
  if (why) element.append(whyTable(why));
  else if (one.offers.size) element.append(offerTable(one));
  if (one.result !== undefined && one.result !== null) element.append(h("pre", {}, preview(one.result)));
  if (one.state === "waiting") element.append(answerForm(one));
  const done = ["completed", "failed", "canceled", "refused", "not sent"].includes(one.state);
  const tools = h("div", { class: "row" });
  if (one.winner && !why) tools.append(button("Why?", () => void ask(one.id)));
  if (one.id && !done) tools.append(button("Cancel", () => void agents.cancel(one.id), "danger"));
  if (tools.childElementCount) element.append(tools);
}

function answerForm(one: Requested): HTMLElement {
  const input = h("input", { name: "answer", "aria-label": "Answer", required: true, class: "grow" });
  const form = h("form", { class: "row" }, h("p", {}, `Asks: ${asked(one.question)}`), input, h("button", { class: "primary", type: "submit" }, "Answer"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    void agents.answer(one.id, input.value);
  });
  return form;
}

/** Returns the text of a question, which the daemon stores with its agent and time. */
function asked(question: unknown): string {
  const { question: words } = (question ?? {}) as { question?: unknown };
  return text(words ?? question ?? "");
}

function offerTable(one: Requested): HTMLElement {
  const rows = [...one.offers].map(([agent, offer]) =>
    h("tr", agent === one.winner ? { class: "winner" } : {},
      h("td", {}, agent), h("td", { class: "number" }, dollars(offer.cost)), h("td", { class: "number" }, `${offer.eta_ms / 1000} s`), h("td", { class: "number" }, `${Math.round(offer.confidence * 100)} %`),
      h("td", {}, one.chooses && !one.winner ? button("Choose", () => void agents.choose(one.id, agent)) : agent === one.winner ? "won" : "")),
  );
  return table(["Agent", "Cost", "Time", "Sure", ""], rows);
}

function table(names: string[], rows: HTMLElement[]): HTMLElement {
  return h("table", {}, h("thead", {}, h("tr", {}, ...names.map((name) => h("th", { scope: "col" }, name)))), h("tbody", {}, ...rows));
}

function whyTable(why: Why): HTMLElement {
  const box = h("div", { class: "why" });
  for (const { round, winner, because, offers = [] } of why.rounds ?? []) {
    box.append(h("p", {}, `Round ${round}: ${winner ? `${winner} won${because ? `, ${because}` : ""}` : "nobody won"}.`));
    const rows = offers.map((offer) =>
      h("tr", offer.agent_id === winner ? { class: "winner" } : {},
        h("td", {}, offer.agent_id), h("td", { class: "number" }, dollars(offer.cost_microdollars)), h("td", { class: "number" }, `${offer.eta_ms / 1000} s`), h("td", { class: "number" }, `${Math.round(offer.confidence * 100)} %`), h("td", {}, offer.state)),
    );
    if (rows.length) box.append(table(["Agent", "Cost", "Time", "Sure", "Offer"], rows));
  }
  for (const { agent_id, state } of why.attempts ?? []) box.append(h("div", { class: "soft" }, `${agent_id}: ${state}`));
  return box;
}

async function ask(task: string): Promise<void> {
  const why = await read<Why>(`/v1/tasks/${encodeURIComponent(task)}/why`);
  if (why) whys.set(task, why);
  else notice("The daemon does not say why: it does not answer, or the task is of another org.", "problem");
  schedule();
}

async function read<T>(path: string): Promise<T | undefined> {
  const answer = await fetchWithTimeout(path, { headers: { authorization: `Bearer ${await app.tokens.get()}` } }).catch(() => undefined);
  return answer?.ok ? ((await answer.json()) as T) : undefined;
}

const schedule = framed(render);
agents.on("change", schedule);
agents.on("problem", (problem) => notice(problem, "problem"));
presence.on("change", schedule);
presence.on("failed", (problem) => notice(problem, "problem"));
agents.own.on("system", ({ message }) => notice(message, "problem"));
// Countdowns: only their text changes.
setInterval(() => {
  for (const element of document.querySelectorAll<HTMLElement>("[data-until]")) element.textContent = seconds(Number(element.dataset.until));
}, 500);

/** Off duty: present, to receive updates of own requests, without capabilities. */
const offDuty: Profile = { capabilities: [], slots: 1, description: `${app.me.name}, watching` };
let duty = offDuty;
let onDuty = false;
let tracked = "";

/** Tracks what this person offers and does, as the roster of all shows it. */
function track(): void {
  const work: Assignment | undefined = [...agents.assignments.values()].findLast(({ state }) => state === "working");
  const profile: Profile = { ...duty, activity_type: work ? "working" : "idle", current_task: work?.task_id ?? null, progress: work?.progress ?? null };
  if (JSON.stringify(profile) === tracked) return;
  tracked = JSON.stringify(profile);
  void presence.set(profile);
}
track();
agents.on("change", framed(track));

const profile = find<HTMLFormElement>(".profile");
profile.addEventListener("submit", (event) => {
  event.preventDefault();
  const data = new FormData(profile);
  onDuty = !onDuty;
  const capabilities = String(data.get("capabilities")).split(",").map((name) => name.trim()).filter(Boolean);
  duty = !onDuty ? offDuty : { capabilities, slots: Number(data.get("slots")) || 1, description: `${app.me.name}, in a browser` };
  track();
  const button = find<HTMLButtonElement>(".profile button");
  button.textContent = onDuty ? "Go off duty" : "Go on duty";
  button.setAttribute("aria-pressed", String(onDuty));
});

const request = find<HTMLFormElement>(".request");
request.addEventListener("submit", (event) => {
  event.preventDefault();
  const data = new FormData(request);
  const award = String(data.get("award"));
  const window = `${Number(data.get("window")) || 15}s`;
  const words = String(data.get("text")).trim();
  const requires = String(data.get("requires")).split(",").map((name) => name.trim()).filter(Boolean);
  void agents.request(
    { kind: requires[0] ?? "text.write", requires, input: { text: words }, policy: { award, bid_window: window, quiet_gap: window, confirm: CONFIRM, lease: LEASE } },
    words,
    award === "requester",
  );
});

const say = find<HTMLFormElement>(".say");
say.addEventListener("submit", (event) => {
  event.preventDefault();
  const data = new FormData(say);
  void agents.message(String(data.get("to")).trim(), String(data.get("text")));
  say.querySelector<HTMLInputElement>("[name=text]")!.value = "";
});
schedule();
