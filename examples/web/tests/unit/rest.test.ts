// /rest/v1 by supabase-js itself, over HTTP, on the daemon's database with its row security.
import { createClient, type SupabaseClient } from "@supabase/supabase-js";
import { afterAll, beforeAll, expect, test } from "vitest";
import WebSocket from "ws";
import { outcome } from "../../lib/rest.ts";
import { sign } from "../../server/tokens.mjs";
import { Backend, type Server } from "./backend.ts";

let backend: Backend;
let server: Server;

beforeAll(async () => {
  backend = await Backend.open();
  // Any folder serves for the files: the pages are built after these tests.
  server = await backend.serve({ invite: "open sesame", dist: "styles" });
});

afterAll(() => backend?.close());

const origin = (): string => `http://127.0.0.1:${server.port}`;
function as(sub: string, seconds = 60): SupabaseClient {
  const token = sign({ role: "authenticated", sub, org: "demo" }, backend.daemon.secret(), seconds);
  return createClient(origin(), token, { accessToken: async () => token, realtime: { transport: WebSocket as never } });
}
const message = (body: string): object => ({ room: "lobby", client_id: crypto.randomUUID(), body });

test("select, insert, upsert, update and delete behave like PostgREST", async () => {
  const ana = as("ana");
  const one = await ana.from("messages").insert(message("one")).select().single<{ id: number; author: string; client_id: string }>();
  expect(one).toMatchObject({ status: 201, error: null, data: { author: "ana" } });
  const again = await ana.from("messages").insert({ room: "lobby", client_id: one.data!.client_id, body: "one" });
  expect([again.status, again.error?.code, outcome(again).kind]).toEqual([409, "23505", "duplicate"]);
  await ana.from("messages").insert([message("two"), message("three")]).throwOnError();
  const { data } = await ana.from("messages").select("id,body").eq("room", "lobby").gt("id", one.data!.id).in("body", ["two", "th,ree", "three"]).is("deleted_at", null).order("id", { ascending: false }).limit(1);
  expect(data).toEqual([{ id: expect.any(Number), body: "three" }]);
  const reaction = { message_id: one.data!.id, room: "lobby", emoji: "🎉" };
  for (let i = 0; i < 2; i++) expect((await ana.from("reactions").upsert(reaction, { onConflict: "message_id,user_id,emoji", ignoreDuplicates: true })).error).toBeNull();
  expect((await ana.from("messages").update({ body: "uno" }).eq("id", one.data!.id).select("body")).data).toEqual([{ body: "uno" }]);
  expect((await ana.from("reactions").delete().eq("message_id", one.data!.id).select("emoji")).data).toEqual([{ emoji: "🎉" }]);
  expect((await ana.from("messages").select().eq("id", one.data!.id).maybeSingle()).data).toMatchObject({ body: "uno" });
});

test("missing members of a list are null, or with missing=default the default of their column", async () => {
  const ana = as("ana");
  const at = "2026-01-01T00:00:00+00:00";
  const events = [{ source: "unit", name: "e", value: 1, at }, { source: "unit", name: "e", value: 2 }];
  expect((await ana.from("analytics_events").insert(events)).error?.code).toBe("23502");
  const { data } = await ana.from("analytics_events").insert(events, { defaultToNull: false }).select("at,value,dims").throwOnError();
  expect(data).toEqual([{ at, value: 1, dims: {} }, { at: expect.stringMatching(/^2/), value: 2, dims: {} }]);
});

test("row security decides, for readers, strangers and forged columns", async () => {
  expect((await as("eve").from("messages").select()).data).toEqual([]);
  expect((await as("dan").from("messages").insert(message("hi"))).error?.code).toBe("42501");
  const forged = await as("ana").from("messages").insert({ ...message("hi"), author: "ben" });
  expect([forged.status, outcome(forged).kind]).toEqual([403, "refused"]);
  expect((await as("ben").from("messages").update({ body: "mine now" }).eq("author", "ana").select()).data).toEqual([]);
});

test("invalid requests get their error code and have no side effect", async () => {
  const ana = as("ana");
  expect((await ana.from("messages").select().like("body", "%x%")).error?.code).toBe("PGRST100");
  expect((await ana.from("messages").select().eq("id", "seven")).error?.code).toBe("22P02");
  expect((await ana.from("messages").select().eq("id", -1).single()).error?.code).toBe("PGRST116");
  expect((await ana.from("nowhere").select()).status).toBe(404);
  expect((await ana.from("messages").delete()).error?.code).toBe("21000");
  expect((await ana.from("messages").insert({ nonsense: 1 })).status).toBe(400);
  expect((await as("ana", -1).from("messages").select()).error?.code).toBe("PGRST303");
  const huge = await ana.from("messages").insert(message("x".repeat(9_000_000))).then((answer) => answer.status);
  expect(huge).toBe(413);
  expect((await ana.from("messages").select().limit(1)).error).toBeNull();
});

test("sign-in requires the invite code and gives a cookie and short bearers for own agents only", async () => {
  const post = (path: string, body: object, cookie = ""): Promise<Response> =>
    fetch(origin() + path, { method: "POST", headers: { "content-type": "application/json", cookie }, body: JSON.stringify(body) });
  expect((await post("/session", { person: "ana" })).status).toBe(403);
  expect((await post("/session", { person: "ana", invite: "open barley" })).status).toBe(403);
  expect((await post("/session", { person: "zoe", invite: "open sesame" })).status).toBe(404);
  const signedIn = await post("/session", { person: "ana", invite: "open sesame" });
  const cookie = signedIn.headers.get("set-cookie")!;
  expect(cookie).toMatch(/HttpOnly; SameSite=Strict/);
  const own = cookie.split(";")[0]!;
  expect((await post("/session/token", {})).status).toBe(401);
  expect(await (await post("/session/token", { agent: "ana-2" }, own)).json()).toMatchObject({ person: { id: "ana" }, expires_in: 600 });
  expect((await post("/session/token", { agent: "ben" }, own)).status).toBe(403);
  // A cookie is no bearer, and a bearer no cookie.
  const bearer = (await (await post("/session/token", {}, own)).json()) as { token: string };
  expect((await post("/session/token", {}, `convoke_example=${bearer.token}`)).status).toBe(401);
  expect((await fetch(`${origin()}/rest/v1/messages`, { headers: { authorization: `Bearer ${own.split("=")[1]}` } })).status).toBe(401);
  const form = await fetch(`${origin()}/session/token`, { method: "POST", headers: { cookie: own, "content-type": "application/x-www-form-urlencoded" }, body: "a=1" });
  expect(form.status).toBe(405);
});

test("files are served from the folder of the pages alone, with a content security policy", async () => {
  for (const path of ["/../package.json", "/%2e%2e/secret", "/..%2f..%2fetc/passwd", "/%00", "/nothing.js"]) expect((await fetch(origin() + path)).status, path).toBeGreaterThanOrEqual(400);
  const page = await fetch(`${origin()}/app.css`);
  expect([page.status, page.headers.get("content-security-policy")?.includes("unsafe-inline")]).toEqual([200, false]);
});
