// Digests of the room `convoke:<org>`: which tasks changed, with their versions. A digest only says what to read again;
// the rows are the truth. Digests are numbered: after every gap (a number that is missing, a reconnect, sleep, a hidden
// tab) everything on the screen is read again.
import { batch, effect, signal, untracked } from "@preact/signals";
import { RealtimeClient } from "@supabase/realtime-js";
import { answeredAt } from "./api.ts";
import { tick } from "./format.ts";
import { authorize } from "./session.ts";
import type { Changed } from "./store.ts";

export type Status = "connecting" | "catching up" | "live" | "no connection";

/** Everything visible is read again after this time: statistics and rows that were edited by hand have no digest. */
const SAFETY_MS = 120_000;
/** A step of the clock beside the running time means that the machine slept. */
const SLEEP_MS = 5_000;
/** A tab that was hidden for longer reads again when it is shown. */
const HIDDEN_MS = 5_000;

export const status = signal<Status>("connecting");
export const isPaused = signal(sessionStorage.getItem("paused") === "true");
/** Rises when everything must be read again. */
export const generation = signal(0);
/** What the last digest says. */
export const digest = signal<Digest>({ n: 0, tasks: [], more: false, agents: false, gap: false });

/** Whether a digest may concern a task. */
export const concernsTask = (id: string) => ({ more, tasks }: Digest): boolean => more || tasks.some((task) => task.id === id);

/** Follows the numbers of the digests of one subscription. Returns whether one is missing before `n`. */
export function numbering(): (n: number) => boolean {
  let last: number | undefined;
  return (n) => {
    const isMissing = last !== undefined && n !== last + 1;
    last = n;
    return isMissing;
  };
}

/** Reads everything again. */
export function again(): void {
  generation.value += 1;
}

export interface Digest {
  n: number;
  tasks: readonly Changed[];
  /** More tasks changed than are listed. */
  more: boolean;
  /** Agents came, went or changed. */
  agents: boolean;
  /** The daemon itself has lost changes. */
  gap: boolean;
}

/** Times of the client in tests; users have the defaults of realtime-js. */
function timing(): { heartbeatIntervalMs: number; reconnectAfterMs?: () => number } {
  const params = new URLSearchParams(location.search);
  const reconnect = Number(params.get("reconnect"));
  return { heartbeatIntervalMs: Number(params.get("heartbeat")) || 15_000, ...(reconnect ? { reconnectAfterMs: () => reconnect } : {}) };
}

/** Joins the room of an org and follows it until the returned function is called. */
export function follow(org: string): () => void {
  let client: RealtimeClient | undefined;
  let stopped = false;
  status.value = "connecting";
  const url = `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/realtime/v1`;
  const begin = async (): Promise<void> => {
    const { anonKey } = await authorize(false, org);
    if (stopped) return;
    client = new RealtimeClient(url, { params: { apikey: anonKey }, accessToken: async () => (await authorize(false, org)).token, ...timing() });
    // Before the join, which would carry only the anon key otherwise, and be refused.
    await client.setAuth();
    if (stopped) return;
    const room = client.channel(`convoke:${org}`);
    let isGapBefore = numbering();
    room.on("broadcast", { event: "digest" }, ({ payload }: { payload: Digest }) => {
      if (isGapBefore(payload.n) || payload.gap) again();
      else digest.value = payload;
    });
    room.subscribe((told) => {
      batch(() => {
        if (told === "SUBSCRIBED") {
          isGapBefore = numbering();
          status.value = "catching up";
          again();
        } else if (!stopped) status.value = "no connection";
      });
    });
  };
  // The daemon may be away when the page opens: tried again until it answers.
  const attempt = (): void => void begin().catch(() => !stopped && setTimeout(attempt, 2000));
  attempt();
  return () => {
    stopped = true;
    void client?.removeAllChannels();
    void client?.disconnect();
  };
}

/** The join asks every screen to read again; the answer makes it current. */
export function caughtUp(): void {
  if (status.value === "catching up") status.value = "live";
}

export function pause(on: boolean): void {
  sessionStorage.setItem("paused", String(on));
  isPaused.value = on;
  if (!on) again();
}

/** Starts the page's clock, and watches for gaps that no socket reports. */
export function watch(): void {
  let last = { wall: Date.now(), running: performance.now() };
  let hiddenAt = 0;
  let readAt = performance.now();
  setInterval(() => {
    const current = { wall: Date.now(), running: performance.now() };
    const slept = Math.abs(current.wall - last.wall - (current.running - last.running)) > SLEEP_MS;
    last = current;
    if (document.hidden) return;
    tick();
    if (slept || (!isPaused.value && current.running - readAt > SAFETY_MS)) again();
  }, 1000);
  effect(() => {
    generation.value;
    readAt = performance.now();
  });
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) hiddenAt = performance.now();
    else if (performance.now() - hiddenAt > HIDDEN_MS) again();
  });
  addEventListener("online", again);
  addEventListener("pageshow", (event) => event.persisted && again());
  effect(() => {
    answeredAt.value;
    // The join itself is no answer: only a later one makes the screen current.
    untracked(caughtUp);
  });
}
