// @ts-check
// HS256 tokens: made for the people who sign in here, checked on every request of /rest/v1.
import { createHmac, timingSafeEqual } from "node:crypto";

/** @typedef {Record<string, unknown> & { role: string, exp: number }} Claims */

/** A token that cannot be used; `code` is PostgREST's. */
export class BadToken extends Error {
  /** @param {string} code @param {string} message */
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

/** @param {string} text */
const encode = (text) => Buffer.from(text).toString("base64url");

/** @param {string} signed @param {string} secret */
const signature = (signed, secret) => createHmac("sha256", secret).update(signed).digest();

/**
 * Returns a signed token that expires after `seconds`.
 * @param {Record<string, unknown>} claims @param {string} secret @param {number} seconds
 */
export function sign(claims, secret, seconds) {
  const now = Math.floor(Date.now() / 1000);
  const head = encode(JSON.stringify({ alg: "HS256", typ: "JWT" }));
  const body = encode(JSON.stringify({ ...claims, iat: now, exp: now + seconds }));
  return `${head}.${body}.${signature(`${head}.${body}`, secret).toString("base64url")}`;
}

/**
 * Returns the claims of a good token; throws `BadToken` otherwise.
 * @param {string} token @param {string} secret @returns {Claims}
 */
export function verify(token, secret) {
  const parts = token.split(".");
  if (parts.length !== 3) throw new BadToken("PGRST301", "Expected 3 parts in JWT");
  const [head = "", body = "", given = ""] = parts;
  const expected = signature(`${head}.${body}`, secret);
  const actual = Buffer.from(given, "base64url");
  if (actual.length !== expected.length || !timingSafeEqual(actual, expected))
    throw new BadToken("PGRST301", "JWSError JWSInvalidSignature");
  if (read(head).alg !== "HS256") throw new BadToken("PGRST301", "JWT algorithm must be HS256");
  const claims = read(body);
  if (typeof claims.exp !== "number" || claims.exp * 1000 <= Date.now())
    throw new BadToken("PGRST303", "JWT expired");
  if (typeof claims.role !== "string") throw new BadToken("PGRST301", "JWT has no role");
  return /** @type {Claims} */ (claims);
}

/** @param {string} part @returns {Record<string, unknown>} */
function read(part) {
  try {
    const value = JSON.parse(Buffer.from(part, "base64url").toString("utf8"));
    if (value && typeof value === "object" && !Array.isArray(value)) return value;
  } catch {
    // Reported below, as for any other value that is no object.
  }
  throw new BadToken("PGRST301", "JWT cannot be decoded");
}
