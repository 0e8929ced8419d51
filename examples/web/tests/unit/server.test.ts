import { describe, expect, test } from "vitest";
import { BadRequest, columns, elements, order, page, where } from "../../server/query.mjs";
import { BadToken, sign, verify } from "../../server/tokens.mjs";

const SECRET = "a secret of at least thirty-two bytes";
const parsed = (text: string): { sql: string; values: unknown[] } => {
  const values: unknown[] = [];
  return { sql: where(new URLSearchParams(text), values), values };
};

describe("query strings of PostgREST", () => {
  test("filters become parameters, never text", () => {
    expect(parsed("room=eq.den' or 1=1&id=gt.7")).toEqual({ sql: 'where "room" = $1 and "id" > $2', values: ["den' or 1=1", "7"] });
    expect(parsed("room=not.eq.den&deleted_at=is.null")).toEqual({ sql: 'where not ("room" = $1) and "deleted_at" is null', values: ["den"] });
    expect(parsed('id=in.(1,2,"a,b")').values).toEqual([["1", "2", "a,b"]]);
  });

  test("an unsupported filter is refused by name", () => {
    for (const text of ["room=like.*x*", "or=(a.eq.1)", "room=fts.word", "a b=eq.1", 'x"y=eq.1', "room=is.maybe", "id=in.1,2"])
      expect(() => parsed(text), text).toThrow(BadRequest);
    expect(() => columns(new URLSearchParams("select=*,author(*)"))).toThrow(BadRequest);
    expect(() => order(new URLSearchParams("order=id.sideways"))).toThrow(BadRequest);
    expect(() => page(new URLSearchParams("limit=-1"), 10)).toThrow(BadRequest);
  });

  test("elements of a list keep commas and quotes, and a broken list is refused", () => {
    expect(elements('("a\\"b","c,d",e)')).toEqual(['a"b', "c,d", "e"]);
    expect(elements("()")).toEqual([]);
    expect(elements("(a,)")).toEqual(["a", ""]);
    expect(() => elements('("a"b)')).toThrow(BadRequest);
  });

  test("order, columns and pages are quoted and bounded", () => {
    expect(order(new URLSearchParams("order=at.desc.nullslast,id"))).toBe('order by "at" desc nulls last, "id"');
    expect(columns(new URLSearchParams("select=id,body"))).toBe('"id", "body"');
    expect(page(new URLSearchParams("limit=99999&offset=5"), 1000)).toBe("limit 1000 offset 5");
  });
});

describe("tokens", () => {
  test("a good token gives its claims", () => {
    expect(verify(sign({ role: "anon", sub: "ana" }, SECRET, 60), SECRET)).toMatchObject({ role: "anon", sub: "ana" });
  });

  test("tokens with another secret, expired, without role or malformed are refused", () => {
    const [head, , signature] = sign({ role: "anon" }, SECRET, 60).split(".");
    const forged = `${head}.${Buffer.from(JSON.stringify({ role: "service_role", exp: 4e9 })).toString("base64url")}.${signature}`;
    for (const token of [sign({ role: "anon" }, `${SECRET}!`, 60), sign({ role: "anon" }, SECRET, -1), sign({}, SECRET, 60), "a.b", "", forged])
      expect(() => verify(token, SECRET), token).toThrow(BadToken);
  });
});
