// The identity of this page: the person of the cookie, bearers for supabase-js, and the client.
import { createClient, type SupabaseClient } from "@supabase/supabase-js";
import { randomId } from "./ids.ts";

export interface Person {
  id: string;
  name: string;
}

export interface Config {
  anonKey: string;
  people: Person[];
  /** Whether the server asks for an invite code. */
  invite: boolean;
}

const addressParams = (): URLSearchParams => new URLSearchParams(globalThis.location?.search ?? "");

/**
 * A request or websocket handshake without an answer after this is ended, so that it is tried again: a browser waits
 * for minutes, and what waits for the answer waits with it. Tests shorten it by `?patience=1500`.
 */
const ANSWER_WITHIN_MS = 20_000;
const answerWithinMs = (): number => Number(addressParams().get("patience")) || ANSWER_WITHIN_MS;

/** `fetch` that fails when there is no answer in time. */
export const fetchWithTimeout: typeof fetch = (input, init) => {
  const limit = AbortSignal.timeout(answerWithinMs());
  return fetch(input, { ...init, signal: init?.signal ? AbortSignal.any([init.signal, limit]) : limit });
};

/** Remaining lifetime at which a bearer is renewed. */
const RENEW_BEFORE_MS = 60_000;

/** A refused request to the server's own routes. */
export class SessionError extends Error {
  constructor(
    message: string,
    readonly status: number,
  ) {
    super(message);
  }
}

async function post<T>(path: string, body: object): Promise<T> {
  const answer = await fetchWithTimeout(path, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
  });
  const parsed = (await answer.json().catch(() => ({}))) as T & { message?: string };
  if (!answer.ok) throw new SessionError(parsed.message ?? `status ${answer.status}`, answer.status);
  return parsed;
}

export async function loadConfig(): Promise<Config> {
  const answer = await fetchWithTimeout("/config");
  if (!answer.ok) throw new SessionError("the server does not answer", answer.status);
  return (await answer.json()) as Config;
}

export const signIn = (person: string, invite?: string): Promise<Person> => post("/session", { person, invite });

export async function signOut(): Promise<void> {
  await fetchWithTimeout("/session", { method: "DELETE" });
}

interface Bearer {
  token: string;
  person: Person;
  org: string;
  expires_in: number;
}

/** Bearers of one person (and agent), renewed before they expire. */
export class Tokens {
  #bearer: Bearer | undefined;
  #renewAt = 0;
  #asking: Promise<Bearer> | undefined;
  /** Called when the cookie no longer belongs to the person of this page. */
  signedOut: (reason: string) => void = () => undefined;

  /** @param agent the id of an agent that the bearer may act as */
  constructor(readonly agent?: string) {}

  /** Returns a bearer. If the renewal fails, returns the last one, which may still be valid. */
  async get(): Promise<string> {
    if (this.#bearer && Date.now() < this.#renewAt) return this.#bearer.token;
    try {
      return (await this.#renew()).token;
    } catch (error) {
      if (!this.#bearer) throw error;
      if (error instanceof SessionError && error.status === 401) this.signedOut(error.message);
      return this.#bearer.token;
    }
  }

  /** Returns the person of the cookie; throws `SessionError` with 401 without a session. */
  async who(): Promise<{ person: Person; org: string }> {
    const bearer = this.#bearer ?? (await this.#renew());
    return { person: bearer.person, org: bearer.org };
  }

  // Concurrent callers share one request.
  #renew(): Promise<Bearer> {
    this.#asking ??= post<Bearer>("/session/token", this.agent ? { agent: this.agent } : {})
      .then((bearer) => {
        // All tabs of a browser share the cookie. A page of one person must never write as another.
        if (this.#bearer && this.#bearer.person.id !== bearer.person.id) throw new SessionError(`${bearer.person.name} signed in in this browser`, 401);
        this.#bearer = bearer;
        this.#renewAt = Date.now() + bearer.expires_in * 1000 - RENEW_BEFORE_MS;
        return bearer;
      })
      .finally(() => (this.#asking = undefined));
    return this.#asking;
  }
}

/**
 * This tab's name: 128 random bits in memory. Not in sessionStorage, which is copied when a tab is duplicated and
 * would give two tabs one name.
 */
export const tabId = randomId();

/** Returns the browser's WebSocket with a limit for the handshake; undefined where there is none (tests in Node.js). */
function socketWithTimeout(): typeof WebSocket | undefined {
  if (typeof WebSocket === "undefined") return undefined;
  return class extends WebSocket {
    constructor(url: string | URL, protocols?: string | string[]) {
      super(url, protocols);
      const timer = setTimeout(() => this.close(), answerWithinMs());
      for (const event of ["open", "close"]) this.addEventListener(event, () => clearTimeout(timer));
    }
  };
}

/** Connection settings of tests, from the page's address: `?heartbeat=1000&reconnect=200`. */
function tuning(): { heartbeatIntervalMs?: number; reconnectAfterMs?: () => number } {
  const params = addressParams();
  const [heartbeat, reconnect] = [Number(params.get("heartbeat")), Number(params.get("reconnect"))];
  return {
    ...(heartbeat >= 100 ? { heartbeatIntervalMs: heartbeat } : {}),
    ...(reconnect >= 10 ? { reconnectAfterMs: () => reconnect } : {}),
  };
}

/**
 * Returns a supabase-js client for `tokens`. The tab's name is the socket's `client_id`, so that a room with a
 * history replays the messages of a disconnect. To move the page to Supabase, change `url` and `key`.
 */
export function makeClient(url: string, key: string, tokens: Tokens, clientId: string = tabId): SupabaseClient {
  const transport = socketWithTimeout();
  return createClient(url, key, {
    accessToken: () => tokens.get(),
    global: { fetch: fetchWithTimeout },
    realtime: { params: { client_id: clientId }, worker: false, ...(transport ? { transport } : {}), ...tuning() },
  });
}
