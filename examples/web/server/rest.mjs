// @ts-check
// /rest/v1/<table>: the subset of PostgREST that `supabase.from(…)` needs. Each request is one transaction with the role
// and the claims of its token, so the grants and row security of the database apply. The pages also run unchanged
// against a real PostgREST or Supabase.
import { BadRequest, columns, identifier, order, page, where } from "./query.mjs";
import { BadToken, verify } from "./tokens.mjs";

/** Bytes of a request's body: a row of 2 MB of text or bytea with its hexadecimal fits. */
const BODY_MAX = 8 * 1024 * 1024;
const ROWS_MAX = 5000;
const ROLES = new Set(["anon", "authenticated", "service_role"]);

/** @typedef {{ status: number, body?: string, headers?: Record<string, string> }} Answer */

/**
 * Answers one request.
 * @param {import("pg").Pool} pool @param {string} secret
 * @param {import("node:http").IncomingMessage} request @param {URL} url
 * @returns {Promise<Answer>}
 */
export async function rest(pool, secret, request, url) {
  try {
    const claims = verify(bearer(request), secret);
    if (!ROLES.has(claims.role)) throw new BadToken("22023", `role "${claims.role}" does not exist`);
    const statement = await plan(request, url);
    const rows = await run(pool, claims, statement);
    return answer(request, statement, rows);
  } catch (error) {
    return refusal(error);
  }
}

/** @param {import("node:http").IncomingMessage} request */
function bearer(request) {
  const match = /^Bearer (.+)$/i.exec(request.headers.authorization ?? "");
  const key = request.headers.apikey;
  const token = match?.[1] ?? (typeof key === "string" ? key : undefined);
  if (!token) throw new BadToken("PGRST301", "no API key or bearer token");
  return token;
}

/** @typedef {{ text: string, values: unknown[], returns: boolean, method: string }} Statement */

/**
 * @param {import("node:http").IncomingMessage} request @param {URL} url @returns {Promise<Statement>}
 */
async function plan(request, url) {
  const table = `public.${identifier(decodeURIComponent(url.pathname.slice("/rest/v1/".length)))}`;
  const params = url.searchParams;
  const method = request.method ?? "GET";
  const prefer = preferences(request);
  /** @type {unknown[]} */
  const values = [];
  const returning = prefer.get("return") === "representation";
  const shown = columns(params);
  if (method === "GET" || method === "HEAD") {
    const text = `select ${shown} from ${table} ${where(params, values)} ${order(params)} ${page(params, ROWS_MAX)}`;
    return { text, values, returns: true, method };
  }
  const tail = returning ? `returning ${shown}` : "";
  if (method === "DELETE")
    return { text: `delete from ${table} ${filtered(params, values)} ${tail}`, values, returns: returning, method };
  const body = await json(request);
  if (method === "PATCH") {
    const text = `update ${table} set ${assignments(table, body, values)} ${filtered(params, values)} ${tail}`;
    return { text, values, returns: returning, method };
  }
  if (method !== "POST") throw new BadRequest("PGRST117", `method ${method} is not supported`, 405);
  return { text: `${insertion(table, body, params, prefer, values)} ${tail}`, values, returns: returning, method };
}

/** Refuses an update or delete without a filter, which is usually a mistake. @param {URLSearchParams} params @param {unknown[]} values */
function filtered(params, values) {
  const clause = where(params, values);
  if (!clause) throw new BadRequest("21000", "UPDATE and DELETE require a WHERE clause");
  return clause;
}

/** @param {string} table @param {unknown} body @param {unknown[]} values */
function assignments(table, body, values) {
  if (!body || typeof body !== "object" || Array.isArray(body))
    throw new BadRequest("PGRST102", "the body of an update must be an object");
  const names = Object.keys(body);
  if (!names.length) throw new BadRequest("PGRST102", "the body of an update has no columns");
  const row = `$${values.push(JSON.stringify(body))}::json`;
  const list = names.map(identifier);
  return `(${list.join(", ")}) = (select ${list.join(", ")} from json_populate_record(null::${table}, ${row}))`;
}

/**
 * @param {string} table @param {unknown} body @param {URLSearchParams} params
 * @param {Map<string, string>} prefer @param {unknown[]} values
 */
function insertion(table, body, params, prefer, values) {
  const rows = Array.isArray(body) ? body : [body];
  if (!rows.length || rows.some((row) => !row || typeof row !== "object" || Array.isArray(row)))
    throw new BadRequest("PGRST102", "the body must be an object or a list of objects");
  // As PostgREST does without `columns`: those of the first row, and every row must have the same.
  const named = params.get("columns")?.split(",").map((name) => name.replace(/^"|"$/g, ""));
  const names = named ?? Object.keys(rows[0]);
  if (!named && rows.some((row) => Object.keys(row).sort().join() !== [...names].sort().join()))
    throw new BadRequest("PGRST102", "All object keys must match");
  if (!names.length) return `insert into ${table} default values`;
  const list = names.map(identifier).join(", ");
  const json = `$${values.push(JSON.stringify(rows))}::json`;
  const source = prefer.get("missing") === "default" ? withDefaults(table, names, rows, json) : `select ${list} from json_populate_recordset(null::${table}, ${json})`;
  return `insert into ${table} (${list}) ${source} ${conflict(names, params, prefer)}`;
}

/**
 * Returns rows of which a missing member has the default of its column, not null.
 * @param {string} table @param {string[]} names @param {object[]} rows @param {string} json
 */
function withDefaults(table, names, rows, json) {
  const member = (/** @type {object} */ row, /** @type {number} */ i, /** @type {string} */ name) =>
    Object.hasOwn(row, name) ? `(select ${identifier(name)} from json_populate_record(null::${table}, (${json}) -> ${i}))` : "default";
  return `values ${rows.map((row, i) => `(${names.map((name) => member(row, i, name)).join(", ")})`).join(", ")}`;
}

/** @param {string[]} names @param {URLSearchParams} params @param {Map<string, string>} prefer */
function conflict(names, params, prefer) {
  const resolution = prefer.get("resolution");
  if (!resolution) return "";
  const target = params.get("on_conflict")?.split(",");
  if (resolution === "ignore-duplicates")
    return target ? `on conflict (${target.map(identifier).join(", ")}) do nothing` : "on conflict do nothing";
  if (resolution !== "merge-duplicates") throw new BadRequest("PGRST100", `resolution "${resolution}" is unknown`);
  if (!target) throw new BadRequest("PGRST100", "merge-duplicates needs on_conflict on this server");
  const rest = names.filter((name) => !target.includes(name));
  const set = (rest.length ? rest : target).map((name) => `${identifier(name)} = excluded.${identifier(name)}`);
  return `on conflict (${target.map(identifier).join(", ")}) do update set ${set.join(", ")}`;
}

/** @param {import("node:http").IncomingMessage} request */
function preferences(request) {
  const header = request.headers.prefer;
  const text = Array.isArray(header) ? header.join(",") : (header ?? "");
  return new Map(text.split(",").map((part) => {
    const [name = "", value = ""] = part.trim().split("=");
    return /** @type {[string, string]} */ ([name, value]);
  }));
}

/** @param {import("node:http").IncomingMessage} request @returns {Promise<unknown>} */
async function json(request) {
  const chunks = [];
  let bytes = 0;
  // A body that is too large does not destroy the connection: the answer would be lost.
  for await (const chunk of request.iterator({ destroyOnReturn: false })) {
    bytes += chunk.length;
    if (bytes > BODY_MAX) throw new BadRequest("PGRST102", `the body is over ${BODY_MAX} bytes`, 413);
    chunks.push(chunk);
  }
  try {
    return JSON.parse(Buffer.concat(chunks).toString("utf8"));
  } catch {
    throw new BadRequest("PGRST102", "the body is not JSON");
  }
}

/**
 * @param {import("pg").Pool} pool @param {import("./tokens.mjs").Claims} claims @param {Statement} statement
 * @returns {Promise<string[]>} the rows as JSON texts, written by Postgres
 */
async function run(pool, claims, statement) {
  const client = await pool.connect();
  /** @type {Error | undefined} */
  let broken;
  try {
    await client.query("begin");
    await client.query(
      "select set_config('role', $1, true), set_config('request.jwt.claims', $2, true), set_config('statement_timeout', '10s', true)",
      [claims.role, JSON.stringify(claims)],
    );
    // Postgres writes the JSON, so that bytea, int8 and timestamps look as PostgREST shows them.
    const text = statement.returns && statement.method !== "GET" && statement.method !== "HEAD"
      ? `with changed as (${statement.text}) select row_to_json(changed)::text as row from changed`
      : statement.returns
        ? `select row_to_json(found)::text as row from (${statement.text}) found`
        : statement.text;
    const result = await client.query(text, statement.values);
    await client.query("commit");
    return statement.returns ? result.rows.map((row) => row.row) : [];
  } catch (error) {
    // A connection that cannot be rolled back is not returned to the pool.
    await client.query("rollback").catch((/** @type {Error} */ failure) => (broken = failure));
    throw error;
  } finally {
    client.release(broken);
  }
}

/**
 * @param {import("node:http").IncomingMessage} request @param {Statement} statement @param {string[]} rows
 * @returns {Answer}
 */
function answer(request, statement, rows) {
  const created = statement.method === "POST";
  if (!statement.returns) return { status: created ? 201 : 204 };
  const headers = { "content-type": "application/json; charset=utf-8", "content-range": rows.length ? `0-${rows.length - 1}/*` : "*/*" };
  if (!String(request.headers.accept ?? "").includes("vnd.pgrst.object+json"))
    return { status: created ? 201 : 200, headers, body: `[${rows.join(",")}]` };
  if (rows.length === 1) return { status: created ? 201 : 200, headers, body: rows[0] ?? "" };
  throw new BadRequest("PGRST116", "Cannot coerce the result to a single JSON object", 406);
}

/** SQLSTATE → status, as PostgREST maps them. @type {[RegExp, number][]} */
const STATUSES = [
  [/^23503|^23505/, 409], [/^42501/, 403], [/^42P01|^42883/, 404], [/^08|^53/, 503], [/^57014/, 500], [/^(2|4|P0001|44)/, 400],
];

/** @param {unknown} error @returns {Answer} */
function refusal(error) {
  if (error instanceof BadToken) return problem(401, error.code, error.message);
  if (error instanceof BadRequest) return problem(error.status, error.code, error.message);
  const { code, message, details } = /** @type {{ code?: string, message?: string, details?: string }} */ (error ?? {});
  const status = /^[0-9A-Z]{5}$/.test(code ?? "") ? STATUSES.find(([pattern]) => pattern.test(code ?? ""))?.[1] : undefined;
  // Errors that are not caused by the statement go to the process log only: the client gets no internal text.
  if (!status || status >= 500) {
    console.error(`rest: ${code ?? ""} ${message ?? String(error)}`);
    return problem(status ?? 503, code ?? "PGRST000", "the database cannot answer now");
  }
  return problem(status, code ?? "", message ?? "", details ?? null);
}

/** @param {number} status @param {string} code @param {string} message @param {string | null} [details] @returns {Answer} */
function problem(status, code, message, details = null) {
  return { status, headers: { "content-type": "application/json; charset=utf-8" }, body: JSON.stringify({ code, message, details, hint: null }) };
}
