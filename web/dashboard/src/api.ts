// Requests to `/v1`.
import { signal } from "@preact/signals";
import { parseExact } from "./exact.ts";
import { trialOf } from "./request.ts";
import { Problem, authorize, problemOf, send } from "./session.ts";
import type { Agent, AgentLine, Bar, BulkDone, Burst, Channel, ChannelLine, FeedEvent, Finding, Line, Lines, Overview, Run, Series, Spent, Task, TaskEvent, Trial, Trigger, Why } from "./types.ts";

/** When the daemon last answered; 0 before the first answer. */
export const answeredAt = signal(0);

/** How long a request for the next event waits. */
const WAIT_S = 25;

type Query = Record<string, string | number | null | undefined>;

async function request(path: string, query: Query, init: RequestInit, fresh: boolean): Promise<Response> {
  const { token } = await authorize(fresh);
  const params = Object.entries(query).flatMap(([name, value]) => (value === null || value === undefined || value === "" ? [] : [[name, String(value)]]));
  const search = params.length ? `?${new URLSearchParams(params)}` : "";
  return send(path + search, { ...init, headers: { authorization: `Bearer ${token}`, ...init.headers } });
}

async function text(path: string, query: Query, init: RequestInit): Promise<string> {
  let answer = await request(path, query, init, false);
  // The token may have ended while this machine slept. What was refused for it was not carried out.
  if (answer.status === 401) answer = await request(path, query, init, true);
  if (!answer.ok) throw await problemOf(answer);
  return answer.text();
}

async function get<T>(path: string, query: Query = {}, abort?: AbortSignal): Promise<T> {
  const body = await text(path, query, abort ? { signal: abort } : {});
  answeredAt.value = Date.now();
  return parseExact(body) as T;
}

/** Sends a command; `null` if the answer has no body. */
async function post<T>(path: string, body: unknown, headers: Record<string, string> = {}): Promise<T | null> {
  const answer = await text(path, {}, { method: "POST", headers: { "content-type": "application/json", ...headers }, body: typeof body === "string" ? body : JSON.stringify(body) });
  answeredAt.value = Date.now();
  return answer ? (parseExact(answer) as T) : null;
}

const task = (id: string): string => `/v1/tasks/${encodeURIComponent(id)}`;

export const readOverview = (abort?: AbortSignal): Promise<Overview> => get("/v1/overview", {}, abort);
export const readLines = (query: Query, abort?: AbortSignal): Promise<Lines> => get("/v1/tasks", { ...query, view: "line" }, abort);
export const readLinesById = async (ids: readonly string[], abort?: AbortSignal): Promise<Line[]> => (await readLines({ ids: ids.slice(0, 100).join(","), limit: 100 }, abort)).tasks;
export const readWhy = (id: string, abort?: AbortSignal): Promise<Why> => get(`${task(id)}/why`, {}, abort);
export const readEvents = (id: string, after: number, abort?: AbortSignal): Promise<{ events: TaskEvent[]; next: number; final: boolean }> => get(`${task(id)}/events`, { after }, abort);
/** Waits for the next event. It is no reading of a screen: a screen is not current because this has an answer. */
export const awaitEvent = async (id: string, after: number, abort: AbortSignal): Promise<{ events: TaskEvent[]; next: number; final: boolean }> =>
  parseExact(await text(`${task(id)}/events`, { after, wait: `${WAIT_S}s` }, { signal: abort })) as { events: TaskEvent[]; next: number; final: boolean };
export const readTree = (id: string, abort?: AbortSignal): Promise<{ tasks: Line[]; more: boolean }> => get(`${task(id)}/tree`, {}, abort);
export const readSteps = async (id: string, abort?: AbortSignal): Promise<Run[]> => (await get<{ runs: Run[] }>(`${task(id)}/steps`, {}, abort)).runs;
export const readAgents = async (abort?: AbortSignal): Promise<Agent[]> => (await get<{ agents: Agent[] }>("/v1/agents", {}, abort)).agents;
export const readAgentLines = async (abort?: AbortSignal): Promise<AgentLine[]> => (await get<{ agents: AgentLine[] }>("/v1/agents", { view: "line" }, abort)).agents;
export const readDefinition = async (id: string, abort?: AbortSignal): Promise<unknown> => (await get<{ definition: unknown }>(`/v1/agents/${encodeURIComponent(id)}/definition`, {}, abort)).definition;
export const readFeed = (query: Query, abort?: AbortSignal): Promise<{ events: FeedEvent[]; next: number | null }> => get("/v1/events", query, abort);
export const readSeries = (names: readonly string[], step: "1s" | "1m", abort?: AbortSignal): Promise<Series> => get("/v1/series", { names: names.join(","), step }, abort);
export const readFindings = async (abort?: AbortSignal): Promise<Finding[]> => (await get<{ findings: Finding[] }>("/v1/doctor", {}, abort)).findings;
export const readSettings = (abort?: AbortSignal): Promise<Record<string, Record<string, unknown>>> => get("/v1/settings", {}, abort);
export const readAgent = (id: string, abort?: AbortSignal): Promise<Agent> => get(`/v1/agents/${encodeURIComponent(id)}`, {}, abort);
export const readLanes = (query: Query, abort?: AbortSignal): Promise<{ bars: Bar[]; more: boolean }> => get("/v1/lanes", query, abort);
export const readSpend = (query: Query, abort?: AbortSignal): Promise<{ rows: Spent[]; partial: boolean }> => get("/v1/spend", query, abort);
export const readTriggers = (abort?: AbortSignal): Promise<{ triggers: Trigger[]; bursts: Burst[] }> => get("/v1/triggers", {}, abort);
/** `row` is JSON as text, so that big numbers stay what was typed. */
export const tryFilter = (trigger: string, event: string, row: string): Promise<Trial | null> => post(`/v1/triggers/${encodeURIComponent(trigger)}/try`, trialOf(event, row));
export const readChannels = (query: Query, abort?: AbortSignal): Promise<{ channels: ChannelLine[]; total: number }> => get("/v1/channels", query, abort);
export const readChannel = (topic: string, abort?: AbortSignal): Promise<Channel> => get(`/v1/channels/${encodeURIComponent(topic)}`, {}, abort);

export const cancelTask = (id: string, reason: string): Promise<unknown> => post(`${task(id)}/cancel`, reason ? { reason } : {});
export const requeueTask = (id: string): Promise<unknown> => post(`${task(id)}/requeue`, {});
/** `answer` is JSON as text, so that big numbers stay what was typed. */
export const answerTask = (id: string, answer: string): Promise<unknown> => post(`${task(id)}/answer`, `{"answer":${answer}}`);
export const chooseOffer = (id: string, agent_id: string): Promise<unknown> => post(`${task(id)}/choose`, { agent_id });
export const setBudget = (id: string, budget: object): Promise<unknown> => post(`${task(id)}/budget`, budget);
export const setDrained = (id: string, on: boolean): Promise<unknown> => post(`/v1/agents/${encodeURIComponent(id)}/${on ? "drain" : "resume"}`, {});
export const bulk = async (body: object): Promise<BulkDone> => (await post<BulkDone>("/v1/tasks/bulk", body)) ?? { tasks: [], refused: [], more: false };
/** A repeated request with the same key makes no second task. */
export const requestTask = async (body: string, key: string): Promise<Task | undefined> => (await post<{ task: Task }>("/v1/tasks", body, { "idempotency-key": key }))?.task;

export { Problem };
