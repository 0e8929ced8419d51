// Signing in, and the bearer token that the session gives.
import { computed, signal } from "@preact/signals";
import type { SessionLine } from "./types.ts";

export interface Session {
  user: string;
  org: string;
  role: "viewer" | "operator" | "admin";
  expires_at: string;
  /** Whether the daemon sends this person the inputs, results, errors and questions of tasks. */
  sees_data: boolean;
}

export type SessionState =
  | { is: "loading" }
  | { is: "in"; session: Session }
  /** Signed in as somebody else than the link says. */
  | { is: "ask"; session: Session; ticket: Ticket; user: string; org: string }
  | { is: "out"; message: string | null };

export const session = signal<SessionState>({ is: "loading" });
/** Whether this person may command tasks and agents. The daemon decides; the page only leaves out what it would refuse. */
export const isOperator = computed(() => session.value.is === "in" && session.value.session.role !== "viewer");
export const seesData = computed(() => session.value.is !== "in" || session.value.session.sees_data);
export const isAdmin = computed(() => session.value.is === "in" && session.value.session.role === "admin");
/** The session ended while the page was open: it stays, under a dialog. */
export const isExpired = signal(false);

interface Bearer {
  token: string;
  anonKey: string;
  renewAt: number;
}

/** By org: a wall that shows several orgs in turn has one of each. */
const bearers = new Map<string, Bearer>();
const renewals = new Map<string, Promise<Bearer>>();

/** The org that the screens read: that of the session, on a wall the one in turn. */
let shown = "";
export function showOrg(org: string): void {
  shown = org;
}

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

function post(path: string, body: unknown, headers: Record<string, string> = {}): Promise<Response> {
  return send(path, { method: "POST", headers: { "content-type": "application/json", ...headers }, body: JSON.stringify(body) });
}

/** What signs in: a code of the daemon, or a token of another issuer. */
export type Ticket = { code: string } | { token: string };

/** What a code or token says; the daemon verifies it. */
function claimsOf(signed: string): Record<string, unknown> | null {
  try {
    const part = signed.split(".")[1] ?? "";
    const bytes = Uint8Array.from(atob(part.replaceAll("-", "+").replaceAll("_", "/")), (c) => c.charCodeAt(0));
    const claims: unknown = JSON.parse(new TextDecoder().decode(bytes));
    return typeof claims === "object" && claims !== null ? (claims as Record<string, unknown>) : null;
  } catch {
    return null;
  }
}

/** What was pasted: a sign-in link, a code alone, or a token. */
export function ticketOf(text: string): Ticket | null {
  const signed = /[#&?]code=([^&\s]+)/.exec(text)?.[1] ?? text.trim();
  const claims = claimsOf(signed);
  if (claims?.use === "login") return { code: signed };
  return typeof claims?.role === "string" ? { token: signed } : null;
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
    const named = claimsOf(code);
    const isOther = named !== null && (named.sub !== current?.user || named.org !== current?.org);
    if (current && isOther) {
      session.value = { is: "ask", session: current, ticket: { code }, user: String(named.sub), org: String(named.org) };
      return;
    }
    const refused = await signIn({ code });
    if (refused) session.value = { is: "out", message: refused };
  } catch (error) {
    session.value = { is: "out", message: error instanceof Error ? error.message : String(error) };
  }
}

/** Signs in; returns why it was refused. The page and what was typed in it stay in both cases. */
export async function signIn(ticket: Ticket): Promise<string | null> {
  const path = "/dashboard/session";
  const answer = await ("code" in ticket ? post(path, { code: ticket.code }) : post(path, {}, { authorization: `Bearer ${ticket.token}` }));
  if (!answer.ok) return (await problemOf(answer)).message;
  bearers.clear();
  isExpired.value = false;
  session.value = { is: "in", session: (await answer.json()) as Session };
  return null;
}

export async function signOut(): Promise<void> {
  await send("/dashboard/session", { method: "DELETE" });
  bearers.clear();
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

async function renew(org: string): Promise<Bearer> {
  const answer = await post("/dashboard/session/token", org ? { org } : {});
  if (answer.status === 401) {
    isExpired.value = true;
    throw await problemOf(answer);
  }
  if (!answer.ok) throw await problemOf(answer);
  const { token, anon_key, expires_at } = (await answer.json()) as { token: string; anon_key: string; expires_at: string };
  // By the life of the token and not by its end: the clock of this machine may be wrong.
  const life = 10 * 60_000;
  const bearer = { token, anonKey: anon_key, renewAt: performance.now() + Math.max(0, Math.min(life, Date.parse(expires_at) - Date.now() || life)) * 0.8 };
  bearers.set(org, bearer);
  return bearer;
}

/** A bearer token that is valid for minutes, for the org that is shown or another. Concurrent callers share one request. */
export async function authorize(fresh = false, org = shown): Promise<{ token: string; anonKey: string }> {
  const known = bearers.get(org);
  if (known && !fresh && performance.now() < known.renewAt) return known;
  const renewal = renewals.get(org) ?? renew(org).finally(() => renewals.delete(org));
  renewals.set(org, renewal);
  return renewal;
}
