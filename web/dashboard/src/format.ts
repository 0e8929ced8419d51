// Texts for people. Every time is the daemon's.
import { signal } from "@preact/signals";

/** The daemon's clock minus this one's, in milliseconds. */
export const clockOffset = signal(0);
/** The daemon's time, which moves on once a second while the page is visible. */
export const now = signal(Date.now());
export const isUtc = signal(localStorage.getItem("utc") === "true");

export function tick(): void {
  now.value = Date.now() + clockOffset.value;
}

/** Sets the daemon's clock by a time that it just answered. */
export function setClock(at: string): void {
  const offset = Date.parse(at) - Date.now();
  // A second is within the time of an answer; small corrections would only make ages flicker.
  if (Number.isFinite(offset) && Math.abs(offset - clockOffset.value) > 1000) clockOffset.value = offset;
  tick();
}

export function duration(ms: number): string {
  if (!Number.isFinite(ms)) return "–";
  const abs = Math.max(0, ms);
  if (abs < 1000) return `${Math.round(abs)} ms`;
  const seconds = abs / 1000;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  const minutes = seconds / 60;
  if (minutes < 120) return `${Math.floor(minutes)} min`;
  const hours = minutes / 60;
  return hours < 48 ? `${Math.floor(hours)} h` : `${Math.floor(hours / 24)} d`;
}

export function between(from: string | null | undefined, to: string | null | undefined): number {
  return from && to ? Date.parse(to) - Date.parse(from) : Number.NaN;
}

export function since(at: string): string {
  return duration(now.value - Date.parse(at));
}

/** The time of day, with the date if it is another day. */
export function clock(at: string, millis = false): string {
  const time = new Date(at);
  if (Number.isNaN(time.getTime())) return at;
  const zone = isUtc.value ? { timeZone: "UTC" } : {};
  const today = time.toDateString() === new Date(now.value).toDateString();
  const text = time.toLocaleString("en-GB", { ...zone, ...(today ? {} : { day: "2-digit", month: "short" }), hour: "2-digit", minute: "2-digit", second: "2-digit", ...(millis ? { fractionalSecondDigits: 3 as const } : {}) });
  return text;
}

export function absolute(at: string): string {
  const time = new Date(at);
  return Number.isNaN(time.getTime()) ? at : time.toISOString().replace("T", " ").replace("Z", " UTC");
}

export function money(microdollars: number | null | undefined): string {
  if (microdollars === null || microdollars === undefined) return "–";
  const dollars = microdollars / 1_000_000;
  if (dollars === 0) return "$0";
  return dollars < 0.01 ? `$${dollars.toFixed(6).replace(/0+$/, "")}` : `$${dollars.toFixed(2)}`;
}

/** A share in millionths. */
export function score(millionths: number | null | undefined): string {
  return millionths === null || millionths === undefined ? "–" : (millionths / 1_000_000).toFixed(3);
}

export function count(n: number): string {
  return n.toLocaleString("en-US");
}

/** The last part of an id: ids of one second begin alike. */
export function shortId(id: string): string {
  return id.slice(-8);
}

/** What a task is about, in a line. */
export function subject({ id, question, error, input_preview }: { id: string; question: string | null; error: string | null; input_preview: string | null }): string {
  // A task without input has the text of JSON's null.
  return question ?? error ?? (input_preview && input_preview !== "null" ? input_preview : shortId(id));
}

/** A failure text with its numbers and ids masked, so that equal causes are equal. */
export function cause(text: string): string {
  return text.replace(/[0-9a-f]{8}-[0-9a-f-]{27}/gi, "…").replace(/\d+/g, "…");
}
