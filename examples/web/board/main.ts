import { getStroke } from "perfect-freehand";
import { PresenceManager, presenceKey } from "../lib/PresenceManager.ts";
import { RealTimeWhiteboard, type Stroke } from "../lib/RealTimeWhiteboard.ts";
import { hash } from "../lib/ids.ts";
import { renderList } from "../lib/list.ts";
import { BOARD, touches, type Style } from "../lib/strokes.ts";
import { find, framed, guardLeaving, hue, notice, showPeople, showProblems, showSending, startApp } from "../lib/ui.ts";

const app = await startApp("Board");
const name = new URLSearchParams(location.search).get("board") ?? "lobby";
const board = new RealTimeWhiteboard(app.client, app.rooms, name, app.me.id, app.tab, presenceKey(app.me.id, app.tab));
const presence = new PresenceManager(board.room, { user: app.me.id, tab: app.tab, name: app.me.name });

const sheet = find(".sheet");
const settled = find<HTMLCanvasElement>("canvas.settled");
const growing = find<HTMLCanvasElement>("canvas.growing");
const color = find<HTMLInputElement>("[name=color]");
const size = find<HTMLInputElement>("[name=size]");
/** Board units → pixels of the page: x * scale + left. */
const view = { scale: 1, left: 0, top: 0 };
const paths = new Map<string, Path2D>();
let drawn = 0;

/** Returns the outline of a stroke; the outline of a settled stroke is cached. */
function outline(points: readonly number[], style: Style): Path2D {
  const triples = Array.from({ length: points.length / 3 }, (_, i): [number, number, number] => [points[i * 3] ?? 0, points[i * 3 + 1] ?? 0, points[i * 3 + 2] ?? 0.5]);
  const pressure = triples.some(([, , p]) => p !== 0.5);
  const shape = getStroke(triples, { size: style.size, thinning: pressure ? 0.6 : 0, smoothing: 0.5, streamline: 0.4, simulatePressure: false });
  const path = new Path2D();
  shape.forEach(([x, y], i) => (i ? path.lineTo(x ?? 0, y ?? 0) : path.moveTo(x ?? 0, y ?? 0)));
  path.closePath();
  return path;
}

function context(canvas: HTMLCanvasElement, clear: boolean): CanvasRenderingContext2D {
  const ctx = canvas.getContext("2d")!;
  const ratio = devicePixelRatio;
  if (clear) {
    ctx.setTransform(1, 0, 0, 1, 0, 0);
    ctx.clearRect(0, 0, canvas.width, canvas.height);
  }
  ctx.setTransform(view.scale * ratio, 0, 0, view.scale * ratio, view.left * ratio, view.top * ratio);
  return ctx;
}

function paintStroke(ctx: CanvasRenderingContext2D, stroke: Stroke): void {
  const path = paths.get(stroke.id) ?? outline(stroke.points, stroke.style);
  paths.set(stroke.id, path);
  ctx.fillStyle = stroke.style.color;
  ctx.fill(path);
}

/** Half of the eraser's width in board units. */
const ERASER = 8;

let whole = true;
const drawSettled = framed(() => {
  const strokes = board.strokes();
  const ctx = context(settled, whole);
  // A stroke on top is drawn alone, without drawing 5,000 others again.
  for (const stroke of whole ? strokes : strokes.slice(drawn)) paintStroke(ctx, stroke);
  drawn = strokes.length;
  whole = false;
  const seen = new Set(strokes.map((stroke) => stroke.id));
  for (const id of paths.keys()) if (!seen.has(id)) paths.delete(id);
  const data = document.documentElement.dataset;
  data.count = String(strokes.length);
  data.hash = String(hash(strokes.map((stroke) => `${stroke.id} ${stroke.author} ${JSON.stringify(stroke.style)} ${stroke.points.join()}`).join("\n")));
  find(".counts").textContent = `${strokes.length} stroke${strokes.length === 1 ? "" : "s"}`;
});

const drawGrowing = framed(() => {
  const ctx = context(growing, true);
  for (const stroke of [...board.live.values(), ...board.own.values()]) {
    if (!stroke.points.length) continue;
    ctx.fillStyle = stroke.style.color;
    ctx.fill(outline(stroke.points, stroke.style));
  }
  renderList(find(".pointers"), [...board.pointers], ([tab]) => tab, ([, pointer]) => pointer.user, ([, pointer], element) => {
    element.className = "pointer";
    element.style.setProperty("--hue", String(hue(pointer.user)));
    element.textContent = app.nameOf(pointer.user);
  }, "div");
  for (const element of find(".pointers").children as HTMLCollectionOf<HTMLElement>) {
    const pointer = board.pointers.get(element.dataset.key ?? "");
    if (pointer) element.style.translate = `${pointer.x * view.scale + view.left}px ${pointer.y * view.scale + view.top}px`;
  }
  document.documentElement.dataset.growing = String(board.live.size);
});

function redraw(): void {
  whole = true;
  Object.assign(find(".paper").style, { left: `${view.left}px`, top: `${view.top}px`, width: `${BOARD * view.scale}px`, height: `${BOARD * view.scale}px` });
  drawSettled();
  drawGrowing();
}

function fit(): void {
  const { clientWidth: width, clientHeight: height } = sheet;
  view.scale = Math.min(width, height) / BOARD;
  view.left = (width - BOARD * view.scale) / 2;
  view.top = (height - BOARD * view.scale) / 2;
  redraw();
}

function zoom(factor: number, x = sheet.clientWidth / 2, y = sheet.clientHeight / 2): void {
  const scale = Math.min(4, Math.max(0.05, view.scale * factor));
  view.left = x - ((x - view.left) / view.scale) * scale;
  view.top = y - ((y - view.top) / view.scale) * scale;
  view.scale = scale;
  redraw();
}

new ResizeObserver(() => {
  for (const canvas of [settled, growing]) {
    canvas.width = Math.round(sheet.clientWidth * devicePixelRatio);
    canvas.height = Math.round(sheet.clientHeight * devicePixelRatio);
  }
  fit();
}).observe(sheet);

const at = (event: PointerEvent): [number, number] => {
  const box = sheet.getBoundingClientRect();
  return [(event.clientX - box.left - view.left) / view.scale, (event.clientY - box.top - view.top) / view.scale];
};
// A mouse has no pressure: 0.5 means "none" and gives an even line.
const pressure = (event: PointerEvent): number => (event.pointerType === "pen" ? event.pressure : 0.5);

let tool = "pen";
let stroke: string | undefined;
let moving: { x: number; y: number } | undefined;
let erased: [number, number] | undefined;

function choose(next: string): void {
  tool = next;
  sheet.dataset.tool = tool;
  for (const button of document.querySelectorAll<HTMLElement>("[data-tool]")) if (button !== sheet) button.setAttribute("aria-pressed", String(button.dataset.tool === tool));
}
choose("pen");
for (const button of document.querySelectorAll<HTMLButtonElement>("button[data-tool]")) button.addEventListener("click", () => choose(button.dataset.tool ?? "pen"));

sheet.addEventListener("pointerdown", (event) => {
  if (event.button > 1) return;
  sheet.setPointerCapture(event.pointerId);
  if (tool === "hand" || event.button === 1) {
    moving = { x: event.clientX, y: event.clientY };
  } else if (tool === "pen") {
    stroke = board.begin({ color: color.value, size: Number(size.value) });
    extend([event]);
  } else erase([event]);
});

/** All positions since the last event of a frame. */
const coalesced = (event: PointerEvent): PointerEvent[] => (event.getCoalescedEvents?.().length ? event.getCoalescedEvents() : [event]);

function extend(events: PointerEvent[]): void {
  if (!stroke) return;
  const points = events.flatMap((event) => [...at(event), pressure(event)]);
  if (board.extend(stroke, points)) return;
  // A stroke of very many points is stored in parts.
  board.end(stroke);
  stroke = board.begin({ color: color.value, size: Number(size.value) });
  board.extend(stroke, points.slice(-3));
}

sheet.addEventListener("pointermove", (event) => {
  const [x, y] = at(event);
  board.point(x, y);
  if (moving) {
    view.left += event.clientX - moving.x;
    view.top += event.clientY - moving.y;
    moving = { x: event.clientX, y: event.clientY };
    redraw();
  } else if (stroke) extend(coalesced(event));
  else if (tool === "eraser" && event.buttons) erase(coalesced(event));
});

function finish(): void {
  if (stroke) board.end(stroke);
  stroke = moving = erased = undefined;
}
sheet.addEventListener("pointerup", finish);
sheet.addEventListener("pointercancel", finish);
sheet.addEventListener("wheel", (event) => {
  event.preventDefault();
  const box = sheet.getBoundingClientRect();
  zoom(Math.exp(-event.deltaY / 400), event.clientX - box.left, event.clientY - box.top);
}, { passive: false });

/** Erases the person's own strokes on the way of the pointer, which can be far between two events. */
function erase(events: PointerEvent[]): void {
  const own = board.strokes().filter((one) => one.author === app.me.id);
  for (const event of events) {
    const to = at(event);
    const from = erased ?? to;
    erased = to;
    for (const one of own) if (!one.deleted && touches(one.points, one.style.size / 2 + ERASER, from, to)) board.setDeleted(one, true);
  }
}

find(".undo").addEventListener("click", () => void board.undo());
find(".redo").addEventListener("click", () => void board.redo());
find(".in").addEventListener("click", () => zoom(1.25));
find(".out").addEventListener("click", () => zoom(0.8));
find(".fit").addEventListener("click", fit);
find(".clear").addEventListener("click", () => board.clearBoard());
window.addEventListener("keydown", (event) => {
  if (!(event.ctrlKey || event.metaKey) || event.key.toLowerCase() !== "z") return;
  event.preventDefault();
  if (event.shiftKey) board.redo();
  else board.undo();
});
window.addEventListener("pagehide", finish);
guardLeaving(() => board.outbox.unsettled().length > 0);

board.on("settled", (all) => {
  whole ||= all;
  drawSettled();
});
board.on("live", drawGrowing);
board.on("problem", (text) => notice(text, "problem"));
board.outbox.on("change", drawGrowing);
board.outbox.on("change", showSending(() => board.outbox.unsettled().length));
showProblems(board.room, presence);
showPeople(app, presence);
