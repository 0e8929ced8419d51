// @ts-check
// Sign-in: people choose an identity from the seeds, get a cookie, and with it bearers of ten minutes.
//
// This is a placeholder for a real sign-in. It is open on loopback only: a server on another address prints an invite
// code, which is required to sign in. A bearer is never stored and never part of a URL.
import { randomBytes, timingSafeEqual } from "node:crypto";
import { BadToken, sign, verify } from "./tokens.mjs";

const COOKIE = "convoke_example";
const SESSION_SECONDS = 12 * 3600;
const BEARER_SECONDS = 600;
const ORG = "demo";
const NAME = /^[a-z][a-z0-9-]{0,30}$/;
const AGENT = /^[a-z][a-z0-9-]{0,40}$/;
/** Maximum of wrong invite codes a minute; further ones are refused until the next minute. */
const WRONG_CODES_MAX = 20;

/** @returns a code that can be read aloud; 50 bits */
export const inviteCode = () => [...randomBytes(10)].map((byte) => "abcdefghjkmnpqrstuvwxyz23456789"[byte % 31]).join("");

/** @typedef {{ status: number, body?: unknown, cookie?: string }} Reply */

export class People {
  #wrong = 0;
  #minute = 0;

  /** @param {string} secret @param {import("pg").Pool} pool @param {string | undefined} invite @param {number} [bearerSeconds] */
  constructor(secret, pool, invite, bearerSeconds = BEARER_SECONDS) {
    this.secret = secret;
    this.pool = pool;
    this.invite = invite;
    this.bearerSeconds = bearerSeconds;
  }

  /** The key for pages, like the anon key of a Supabase project. */
  anonKey() {
    return sign({ role: "anon", iss: "convoke" }, this.secret, 365 * 24 * 3600);
  }

  /** The people, and whether an invite code is required. */
  async list() {
    const { rows } = await this.pool.query("select id, name from public.people order by id");
    return { people: rows, invite: this.invite !== undefined };
  }

  /** @param {Record<string, unknown>} body @returns {Promise<Reply>} */
  async signIn(body) {
    if (!this.#invited(body.invite)) return { status: 403, body: { message: "this invite code is not the one that the server printed" } };
    const id = String(body.person ?? "");
    if (!NAME.test(id)) return { status: 400, body: { message: "person must be one of the list" } };
    const { rows } = await this.pool.query("select id, name from public.people where id = $1", [id]);
    if (!rows.length) return { status: 404, body: { message: `there is no person "${id}"` } };
    const cookie = sign({ role: "session", sub: id, name: rows[0].name }, this.#sessionSecret(), SESSION_SECONDS);
    return { status: 200, body: rows[0], cookie: `${COOKIE}=${cookie}; HttpOnly; SameSite=Strict; Path=/; Max-Age=${SESSION_SECONDS}` };
  }

  /** @returns {Reply} */
  signOut() {
    return { status: 204, cookie: `${COOKIE}=; HttpOnly; SameSite=Strict; Path=/; Max-Age=0` };
  }

  /**
   * A bearer for the person of the cookie; with `agent`, one that may act as an agent of theirs.
   * @param {import("node:http").IncomingMessage} request @param {Record<string, unknown>} body @returns {Reply}
   */
  bearer(request, body) {
    const session = this.#session(request);
    if (!session) return { status: 401, body: { message: "sign in first" } };
    const { sub, name } = session;
    /** @type {Record<string, unknown>} */
    const claims = { role: "authenticated", aud: "authenticated", sub, name, org: ORG };
    if (body.agent !== undefined) {
      const agent = String(body.agent);
      // The ids of a person's agents begin with the person's id, so a person gets no token for another person's agent.
      if (!AGENT.test(agent) || !(agent === sub || agent.startsWith(`${sub}-`)))
        return { status: 403, body: { message: `your agents are called ${sub} or ${sub}-…` } };
      claims.agent_id = agent;
    }
    const token = sign(claims, this.secret, this.bearerSeconds);
    return { status: 200, body: { token, person: { id: sub, name }, org: ORG, expires_in: this.bearerSeconds } };
  }

  /** @param {import("node:http").IncomingMessage} request */
  #session(request) {
    const cookies = (request.headers.cookie ?? "").split(";").map((part) => part.trim());
    const found = cookies.find((part) => part.startsWith(`${COOKIE}=`));
    if (!found) return undefined;
    try {
      return verify(found.slice(COOKIE.length + 1), this.#sessionSecret());
    } catch (error) {
      if (error instanceof BadToken) return undefined;
      throw error;
    }
  }

  // A separate secret, so that a cookie is never a valid bearer, and a bearer never a valid cookie.
  #sessionSecret() {
    return `session:${this.secret}`;
  }

  /** @param {unknown} given */
  #invited(given) {
    if (this.invite === undefined) return true;
    const minute = Math.floor(Date.now() / 60_000);
    if (minute !== this.#minute) [this.#minute, this.#wrong] = [minute, 0];
    if (this.#wrong >= WRONG_CODES_MAX) return false;
    const [a, b] = [Buffer.from(String(given ?? "")), Buffer.from(this.invite)];
    if (a.length === b.length && timingSafeEqual(a, b)) return true;
    this.#wrong += 1;
    return false;
  }
}
