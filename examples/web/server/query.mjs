// @ts-check
// PostgREST's query strings as parameterised SQL: the subset that the pages use. Pure.
//
//   select=id,body | *     order=at.desc,id     limit=50 offset=10     on_conflict=author,client_id
//   room=eq.den   id=gt.7   id=in.(1,2,"a,b")   deleted_at=is.null   room=not.eq.den
// Everything else is refused by name, so that no filter is ignored in silence.

/** A request that PostgREST would refuse, with its code and status. */
export class BadRequest extends Error {
  /** @param {string} code @param {string} message @param {number} [status] */
  constructor(code, message, status = 400) {
    super(message);
    this.code = code;
    this.status = status;
  }
}

const NAME = /^[a-z_][a-z0-9_]{0,62}$/i;
const COMPARISONS = new Map([
  ["eq", "="], ["neq", "<>"], ["gt", ">"], ["gte", ">="], ["lt", "<"], ["lte", "<="],
]);
const IS = new Map([["null", "null"], ["not_null", "not null"], ["true", "true"], ["false", "false"], ["unknown", "unknown"]]);
const RESERVED = new Set(["select", "order", "limit", "offset", "on_conflict", "columns"]);
/** Values of one `in.(…)`. */
const IN_MAX = 1000;

/** Returns a quoted identifier. @param {string} name */
export function identifier(name) {
  if (!NAME.test(name)) throw new BadRequest("PGRST100", `"${name.slice(0, 80)}" is not a column or table name`);
  return `"${name}"`;
}

/** Returns the column list of `select`. @param {URLSearchParams} params */
export function columns(params) {
  const list = params.get("select");
  if (!list || list === "*") return "*";
  return list.split(",").map((name) => identifier(name.trim())).join(", ");
}

/**
 * Returns the `where` clause of the filters; their values are appended to `values`.
 * @param {URLSearchParams} params @param {unknown[]} values
 */
export function where(params, values) {
  /** @type {string[]} */
  const parts = [];
  for (const [name, text] of params) {
    if (RESERVED.has(name)) continue;
    parts.push(condition(identifier(name), text, values));
  }
  return parts.length ? `where ${parts.join(" and ")}` : "";
}

/** @param {string} column @param {string} text @param {unknown[]} values @returns {string} */
function condition(column, text, values) {
  const [operator = "", value] = cut(text);
  if (operator === "not") return `not (${condition(column, value, values)})`;
  const comparison = COMPARISONS.get(operator);
  if (comparison) return `${column} ${comparison} $${values.push(value)}`;
  if (operator === "is") {
    const word = IS.get(value.toLowerCase());
    if (!word) throw new BadRequest("PGRST100", `is.${value} is not null, not_null, true, false or unknown`);
    return `${column} is ${word}`;
  }
  if (operator === "in") return `${column} = any($${values.push(elements(value))})`;
  throw new BadRequest("PGRST100", `operator "${operator}" is not supported by this server`);
}

/** @param {string} text @returns {[string, string]} */
function cut(text) {
  const dot = text.indexOf(".");
  return dot < 0 ? [text, ""] : [text.slice(0, dot), text.slice(dot + 1)];
}

/** The elements of `(1,2,"a,b")`. @param {string} text */
export function elements(text) {
  if (!text.startsWith("(") || !text.endsWith(")")) throw new BadRequest("PGRST100", "in needs parentheses: in.(1,2)");
  const found = [];
  const pattern = /"((?:[^"\\]|\\.)*)"|([^,"]+)|(?<=,|^)(?=,|$)/y;
  const inner = text.slice(1, -1);
  for (let at = 0; inner !== "" && at <= inner.length; ) {
    pattern.lastIndex = at;
    const match = pattern.exec(inner);
    if (!match) throw new BadRequest("PGRST100", `in has a value that cannot be read near position ${at}`);
    found.push(match[1] !== undefined ? match[1].replace(/\\(.)/g, "$1") : (match[2] ?? ""));
    if (found.length > IN_MAX) throw new BadRequest("PGRST100", `in has more than ${IN_MAX} values`);
    at = pattern.lastIndex;
    if (at === inner.length) break;
    if (inner[at] !== ",") throw new BadRequest("PGRST100", `in has a value that cannot be read near position ${at}`);
    at += 1;
  }
  return found;
}

/** Returns `order by`. @param {URLSearchParams} params */
export function order(params) {
  const list = params.get("order");
  if (!list) return "";
  const parts = list.split(",").map((part) => {
    const [name = "", ...words] = part.split(".");
    const known = ["asc", "desc", "nullsfirst", "nullslast"];
    for (const word of words)
      if (!known.includes(word)) throw new BadRequest("PGRST100", `order has an unknown word "${word}"`);
    const direction = words.includes("desc") ? " desc" : "";
    const nulls = words.includes("nullsfirst") ? " nulls first" : words.includes("nullslast") ? " nulls last" : "";
    return `${identifier(name)}${direction}${nulls}`;
  });
  return `order by ${parts.join(", ")}`;
}

/** Returns `limit` and `offset`, at most `most` rows. @param {URLSearchParams} params @param {number} most */
export function page(params, most) {
  const limit = whole(params, "limit") ?? most;
  const offset = whole(params, "offset") ?? 0;
  return `limit ${Math.min(limit, most)} offset ${offset}`;
}

/** @param {URLSearchParams} params @param {string} name */
function whole(params, name) {
  const text = params.get(name);
  if (text === null) return undefined;
  if (!/^\d{1,9}$/.test(text)) throw new BadRequest("PGRST100", `${name} must be a whole number`);
  return Number(text);
}
