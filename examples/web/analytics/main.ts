import { LiveDashboard, type WidgetState } from "../lib/LiveDashboard.ts";
import { Paint } from "../lib/Paint.ts";
import { RealTimeChartWidget } from "../lib/RealTimeChartWidget.ts";
import { hash, randomId } from "../lib/ids.ts";
import { renderList } from "../lib/list.ts";
import { find, h, notice, startApp } from "../lib/ui.ts";

const app = await startApp("Analytics");
const dashboard = new LiveDashboard(app.client, app.rooms, app.org);
const charts = new Map<string, RealTimeChartWidget>();
const paint = new Paint(draw);
let paused = false;

const show = (value: number): string => value.toLocaleString(undefined, { maximumFractionDigits: 1 });
const clock = (at: number): string => new Date(at).toLocaleTimeString();

function layout(): void {
  const states = [...dashboard.widgets.values()].sort((a, b) => a.spec.place - b.spec.place || (a.spec.id < b.spec.id ? -1 : 1));
  renderList(find(".widgets"), states, (one) => one.spec.id, (one) => `${one.spec.kind} ${one.spec.title} ${one.spec.source}`, build, "section");
  for (const [id, chart] of charts) {
    if (dashboard.widgets.has(id)) continue;
    chart.close();
    charts.delete(id);
  }
}

function build(state: WidgetState, element: HTMLElement): void {
  const { id, title, kind, source } = state.spec;
  element.className = "panel widget";
  element.dataset.kind = kind;
  element.dataset.widget = id;
  element.setAttribute("aria-label", title);
  const remove = async (): Promise<void> => {
    const problem = await dashboard.removeWidget(id);
    if (problem) notice(`Not removed: ${problem}`, "problem");
  };
  element.append(
    h("header", {}, h("h2", {}, title), h("span", { class: "soft" }, source), h("button", { class: "quiet", type: "button", "aria-label": `Remove ${title}`, onclick: () => void remove() }, "✕")),
    h("div", { class: kind === "line" ? "chart" : "content" }),
    h("p", { class: "summary soft" }),
    h("p", { class: "bad", role: "status", hidden: true }),
  );
  if (kind !== "line") return;
  charts.get(id)?.close();
  charts.set(id, new RealTimeChartWidget(element.querySelector<HTMLElement>(".chart")!, state.ring));
  element.append(h("details", {}, h("summary", { class: "soft" }, "Show as table"), h("div", { class: "rows" })));
}

function draw(): void {
  if (paused) return;
  layout();
  for (const state of dashboard.widgets.values()) {
    const element = document.querySelector<HTMLElement>(`[data-widget="${CSS.escape(state.spec.id)}"]`);
    if (element) drawWidget(state, element);
  }
  const gap = dashboard.gaps.at(-1);
  find(".gaps").textContent = gap ? (gap.to ? `gap ${clock(gap.from)}–${clock(gap.to)}, filled from the table` : `no connection since ${clock(gap.from)}`) : "";
  document.documentElement.dataset.draws = String(paint.draws);
}

function drawWidget(state: WidgetState, element: HTMLElement): void {
  const { ring, spec } = state;
  const content = element.querySelector<HTMLElement>(".content");
  // For tests: the points of the ring, newest first.
  element.dataset.points = String(ring.size);
  element.dataset.hash = String(hash([...ring.points].reverse().map((point) => `${point.id} ${point.value}`).join("\n")));
  const bad = element.querySelector<HTMLElement>(".bad")!;
  bad.hidden = !state.bad;
  bad.textContent = `${state.bad} left out: ${state.badReason}`;
  const summary = element.querySelector<HTMLElement>(".summary")!;
  if (spec.kind === "line") {
    const chart = charts.get(spec.id);
    chart?.draw();
    summary.textContent = `${chart?.summary() ?? ""}${ring.late ? ` ${ring.late} came too late to be drawn.` : ""}`;
    const details = element.querySelector("details");
    if (details?.open) eventTable(details.querySelector<HTMLElement>(".rows")!, state);
  } else if (content) {
    ({ counter, gauge, bars, table: eventTable })[spec.kind](content, state);
  }
}

function counter(content: HTMLElement, state: WidgetState): void {
  content.replaceChildren(h("div", { class: "big" }, show(dashboard.lastMinute(state, Date.now()))), h("div", { class: "soft" }, "in the last minute"));
}

function gauge(content: HTMLElement, { ring, spec }: WidgetState): void {
  const last = ring.points.at(-1)?.value;
  const [min, max] = [Number(spec.settings.min ?? 0), Number(spec.settings.max ?? 100)];
  const part = last === undefined ? 0 : Math.min(1, Math.max(0, (last - min) / (max - min || 1)));
  const arc = "M 10 60 A 50 50 0 0 1 110 60";
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 120 66");
  svg.setAttribute("aria-hidden", "true");
  for (const [name, length] of [["track", 1], ["value", part]] as const) {
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    for (const [key, value] of Object.entries({ d: arc, class: name, fill: "none", "stroke-width": "10", pathLength: "1", "stroke-dasharray": `${length} 2` })) path.setAttribute(key, value);
    svg.append(path);
  }
  content.replaceChildren(svg, h("div", { class: "big" }, last === undefined ? "–" : show(last)), h("div", { class: "soft" }, `of ${show(min)} to ${show(max)}`));
}

function bars(content: HTMLElement, { ring, spec }: WidgetState): void {
  const by = String(spec.settings.by ?? "route");
  const sums = new Map<string, number>();
  for (const point of ring.points) sums.set(String(point.dims[by] ?? point.name), (sums.get(String(point.dims[by] ?? point.name)) ?? 0) + 1);
  const top = [...sums].sort(([a, x], [b, y]) => y - x || (a < b ? -1 : 1)).slice(0, 8);
  const most = Math.max(1, ...top.map(([, count]) => count));
  content.replaceChildren(...top.map(([name, count]) => h("div", { class: "bar-line" }, h("span", {}, name), h("progress", { max: most, value: count, "aria-label": name }), h("span", {}, String(count)))));
  if (!top.length) content.append(h("p", { class: "empty" }, "No events yet."));
}

function eventTable(content: HTMLElement, { ring }: WidgetState): void {
  content.classList.add("rows");
  content.tabIndex = 0;
  const newest = [...ring.points].reverse().slice(0, 20);
  const body = newest.map((point) => h("tr", {}, h("td", {}, clock(point.at)), h("td", {}, point.name), h("td", { class: "number" }, show(point.value)), h("td", {}, Object.values(point.dims).join(" "))));
  const head = h("tr", {}, ...["Time", "Name", "Value", "Of"].map((name) => h("th", { scope: "col" }, name)));
  content.replaceChildren(newest.length ? h("table", {}, h("thead", {}, head), h("tbody", {}, ...body)) : h("p", { class: "empty" }, "No events yet. Press Start."));
}

dashboard.on("change", () => paint.request());
dashboard.on("widgets", () => paint.request());
dashboard.on("problem", (text) => notice(text, "problem"));
dashboard.on("point", (id, point) => charts.get(id)?.add(point));
const room = await dashboard.open();
room.on("status", (status, detail) => {
  if (status === "refused") notice(`${detail} No events are shown to you.`, "problem");
});
// The count of the last minute also changes without events.
setInterval(() => paint.request(), 1000);

const restyle = (): void => charts.forEach((chart) => chart.restyle());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", restyle);
new MutationObserver(restyle).observe(document.documentElement, { attributeFilter: ["data-theme"] });

const pause = find<HTMLButtonElement>(".pause");
pause.addEventListener("click", () => {
  paused = !paused;
  pause.setAttribute("aria-pressed", String(paused));
  pause.textContent = paused ? "Go on" : "Pause";
  paint.request();
});

const add = find<HTMLFormElement>(".add");
add.addEventListener("submit", async (event) => {
  event.preventDefault();
  const data = new FormData(add);
  const kind = String(data.get("kind")) as WidgetState["spec"]["kind"];
  const problem = await dashboard.addWidget({ id: randomId(), kind, title: String(data.get("title")), source: String(data.get("source")), max_data_points: 50 });
  if (problem) return notice(`Not added: ${problem}`, "problem");
  add.reset();
});

// Sample data: a random walk, sent from this page in batches.
const ROUTES = ["/search", "/cart", "/pay", "/login"];
const BATCH_MS = 250;
let sending: ReturnType<typeof setInterval> | undefined;
let walk = 120;
let load = 40;

function batch(size: number): Record<string, unknown>[] {
  return Array.from({ length: size }, (_, i) => {
    const isLoad = i === 0;
    walk = Math.max(20, walk + (Math.random() - 0.5) * 30);
    load = Math.min(98, Math.max(3, load + (Math.random() - 0.5) * 12));
    const at = new Date(Date.now() - BATCH_MS + (i / size) * BATCH_MS).toISOString();
    if (isLoad) return { at, source: "load", name: "cpu", value: Math.round(load), dims: {} };
    return { at, source: "api", name: "request", value: Math.round(walk), dims: { route: ROUTES[Math.floor(Math.random() ** 2 * ROUTES.length)] } };
  });
}

const send = find<HTMLFormElement>(".send");
send.addEventListener("submit", (event) => {
  event.preventDefault();
  const button = find<HTMLButtonElement>(".send button");
  clearInterval(sending);
  const start = button.getAttribute("aria-pressed") !== "true";
  button.setAttribute("aria-pressed", String(start));
  button.textContent = start ? "Stop" : "Start";
  if (!start) return;
  const rate = Number(new FormData(send).get("rate"));
  const every = Math.max(BATCH_MS, 2000 / rate);
  const size = Math.max(2, Math.round((rate * every) / 1000) + 1);
  let busy = false;
  sending = setInterval(async () => {
    // One request at a time, so that a slow database is not overloaded.
    if (busy) return;
    busy = true;
    const { error } = await app.client.from("analytics_events").insert(batch(size));
    busy = false;
    if (error) notice(`Not sent: ${error.message}`, "problem");
  }, every);
});
