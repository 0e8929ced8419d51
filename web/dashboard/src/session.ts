// Signing in, and the bearer token that the session gives.
import { computed, signal } from "@preact/signals";
import type { SessionLine } from "./types.ts";

export interface Session {
  user: string;
  org: string;
  role: "viewer" | "operator" | "admin";
  expires_at: string;
}

export type SessionState =
  | { is: "loading" }
  | { is: "in"; session: Session }
  /** Signed in as somebody else than the link says. */
  | { is: "ask"; session: Session; code: string; user: string; org: string }
  | { is: "out"; message: string | null };

export const session = signal<SessionState>({ is: "loading" });
/** Whether this person may command tasks and agents. The daemon decides; the page only leaves out what it would refuse. */
export const isOperator = computed(() => session.value.is === "in" && session.value.session.role !== "viewer");
export const isAdmin = computed(() => session.value.is === "in" && session.value.session.role === "admin");
/** The session ended while the page was open: it stays, under a dialog. */
export const isExpired = signal(false);

interface Bearer {
  token: string;
  anonKey: string;
  renewAt: number;
}

let bearer: Bearer | undefined;
let renewal: Promise<Bearer> | undefined;

export class Problem extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    detail: string,
    readonly retryAfterS = 0,
  ) {
    super(detail);
  }
}

export async function problemOf(answer: Response): Promise<Problem> {
  const retry = Number(answer.headers.get("retry-after") ?? 0) || 0;
  const body = (await answer.json().catch(() => ({}))) as { code?: string; detail?: string };
  return new Problem(answer.status, body.code ?? "error", body.detail ?? `the daemon answers ${answer.status}`, retry);
}

/** Sends a request; a failure of the network is a `Problem` with status 0. */
export async function send(path: string, init: RequestInit = {}): Promise<Response> {
  try {
    return await fetch(path, init);
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new Problem(0, "unreachable", "the daemon does not answer");
  }
}

function post(path: string, body: unknown): Promise<Response> {
  return send(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
}

/** The name and the org in a sign-in code; the daemon verifies it. */
function read(code: string): { sub: string; org: string } | null {
  try {
    const part = code.split(".")[1] ?? "";
    const bytes = Uint8Array.from(atob(part.replaceAll("-", "+").replaceAll("_", "/")), (c) => c.charCodeAt(0));
    const claims = JSON.parse(new TextDecoder().decode(bytes)) as { sub?: unknown; org?: unknown };
    return typeof claims.sub === "string" && typeof claims.org === "string" ? { sub: claims.sub, org: claims.org } : null;
  } catch {
    return null;
  }
}

/** The code of a sign-in link, or a code alone. */
export function codeOf(text: string): string | null {
  const code = /[#&?]code=([^&\s]+)/.exec(text)?.[1] ?? text.trim();
  return read(code) ? code : null;
}

/** Finds the session of this browser, and uses the code of the address. */
export async function start(): Promise<void> {
  const code = new URLSearchParams(location.hash.slice(1)).get("code");
  // Before the first request, so that neither the history nor a copied address has the code.
  if (location.hash) history.replaceState(null, "", location.pathname + location.search);
  try {
    const answer = await send("/dashboard/session");
    const current = answer.ok ? ((await answer.json()) as Session) : null;
    if (!answer.ok && answer.status !== 401) throw await problemOf(answer);
    if (!code) {
      session.value = current ? { is: "in", session: current } : { is: "out", message: null };
      return;
    }
    const named = read(code);
    if (current && named && (named.sub !== current.user || named.org !== current.org)) {
      session.value = { is: "ask", session: current, code, user: named.sub, org: named.org };
      return;
    }
    await signIn(code);
  } catch (error) {
    session.value = { is: "out", message: error instanceof Error ? error.message : String(error) };
  }
}

export async function signIn(code: string): Promise<void> {
  const answer = await post("/dashboard/session", { code });
  if (!answer.ok) {
    session.value = { is: "out", message: (await problemOf(answer)).message };
    return;
  }
  bearer = undefined;
  isExpired.value = false;
  session.value = { is: "in", session: (await answer.json()) as Session };
}

export async function signOut(): Promise<void> {
  await send("/dashboard/session", { method: "DELETE" });
  bearer = undefined;
  session.value = { is: "out", message: "You are signed out." };
}

/** The sessions of this person, for an admin those of the org. */
export async function readSessions(): Promise<SessionLine[]> {
  const answer = await send("/dashboard/session/all");
  if (!answer.ok) throw await problemOf(answer);
  return ((await answer.json()) as { sessions: SessionLine[] }).sessions;
}

export async function endSession(id: string): Promise<void> {
  const answer = await send(`/dashboard/session/${encodeURIComponent(id)}`, { method: "DELETE" });
  if (!answer.ok) throw await problemOf(answer);
}

async function renew(): Promise<Bearer> {
  const answer = await post("/dashboard/session/token", {});
  if (answer.status === 401) {
    isExpired.value = true;
    throw await problemOf(answer);
  }
  if (!answer.ok) throw await problemOf(answer);
  const { token, anon_key, expires_at } = (await answer.json()) as { token: string; anon_key: string; expires_at: string };
  // By the life of the token and not by its end: the clock of this machine may be wrong.
  const life = 10 * 60_000;
  bearer = { token, anonKey: anon_key, renewAt: performance.now() + Math.max(0, Math.min(life, Date.parse(expires_at) - Date.now() || life)) * 0.8 };
  return bearer;
}

/** A bearer token that is valid for minutes. Concurrent callers share one request. */
export async function authorize(fresh = false): Promise<{ token: string; anonKey: string }> {
  if (bearer && !fresh && performance.now() < bearer.renewAt) return bearer;
  renewal ??= renew().finally(() => (renewal = undefined));
  return renewal;
}
