// Reads of `/v1`.
import { signal } from "@preact/signals";
import { parseExact } from "./exact.ts";
import { Problem, authorize, problemOf, send } from "./session.ts";
import type { Agent, Line, Lines, Overview, TaskEvent, Why } from "./types.ts";

/** When the daemon last answered; 0 before the first answer. */
export const answeredAt = signal(0);

type Query = Record<string, string | number | null | undefined>;

async function request(path: string, query: Query, abort: AbortSignal | undefined, fresh: boolean): Promise<Response> {
  const { token } = await authorize(fresh);
  const params = Object.entries(query).flatMap(([name, value]) => (value === null || value === undefined || value === "" ? [] : [[name, String(value)]]));
  const search = params.length ? `?${new URLSearchParams(params)}` : "";
  const init: RequestInit = { headers: { authorization: `Bearer ${token}` } };
  return send(path + search, abort ? { ...init, signal: abort } : init);
}

async function text(path: string, query: Query, abort?: AbortSignal): Promise<string> {
  let answer = await request(path, query, abort, false);
  // The token may have ended while this machine slept.
  if (answer.status === 401) answer = await request(path, query, abort, true);
  if (!answer.ok) throw await problemOf(answer);
  const body = await answer.text();
  answeredAt.value = Date.now();
  return body;
}

async function get<T>(path: string, query: Query = {}, abort?: AbortSignal): Promise<T> {
  return parseExact(await text(path, query, abort)) as T;
}

export const readOverview = (abort?: AbortSignal): Promise<Overview> => get("/v1/overview", {}, abort);
export const readLines = (query: Query, abort?: AbortSignal): Promise<Lines> => get("/v1/tasks", { ...query, view: "line" }, abort);
export const readLinesById = async (ids: readonly string[], abort?: AbortSignal): Promise<Line[]> => (await readLines({ ids: ids.slice(0, 100).join(","), limit: 100 }, abort)).tasks;
export const readWhy = (id: string, abort?: AbortSignal): Promise<Why> => get(`/v1/tasks/${encodeURIComponent(id)}/why`, {}, abort);
export const readEvents = (id: string, after: number, abort?: AbortSignal): Promise<{ events: TaskEvent[]; next: number; final: boolean }> => get(`/v1/tasks/${encodeURIComponent(id)}/events`, { after }, abort);
export const readAgents = async (abort?: AbortSignal): Promise<Agent[]> => (await get<{ agents: Agent[] }>("/v1/agents", {}, abort)).agents;
export const readAgent = (id: string, abort?: AbortSignal): Promise<Agent> => get(`/v1/agents/${encodeURIComponent(id)}`, {}, abort);

export { Problem };
