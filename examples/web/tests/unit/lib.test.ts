import { afterEach, describe, expect, test, vi } from "vitest";
import * as Y from "yjs";
import { EventRing, Buckets, pointOf, type Point } from "../../lib/EventRing.ts";
import { MessageBatcher } from "../../lib/MessageBatcher.ts";
import { missing, MissingUpdates } from "../../lib/missing.ts";
import { Outbox } from "../../lib/outbox.ts";
import { outcome, type Outcome } from "../../lib/rest.ts";
import { fromHex, LiveStroke, pointsOf, POINTS_MAX, styleOf, toHex, touches } from "../../lib/strokes.ts";
import { signalOf } from "../../lib/WebRTCSignaling.ts";
import { certainSkew, skewText } from "../../lib/clock.ts";

afterEach(() => void vi.useRealTimers());

describe("MessageBatcher", () => {
  const made = (send: (items: number[]) => Promise<boolean>, maxQueued = 100): MessageBatcher<number> => new MessageBatcher({ send, everyMs: 50, maxItems: 3, maxQueued });

  test("a full batch goes at once, the rest in time, in order", async () => {
    vi.useFakeTimers();
    const sent: number[][] = [];
    const batcher = made(async (items) => (sent.push(items), true));
    for (const n of [1, 2, 3, 4]) batcher.add(n);
    await vi.advanceTimersByTimeAsync(60);
    expect(sent).toEqual([[1, 2, 3], [4]]);
  });

  test("a refused batch is sent first next time, and flushes do not overlap", async () => {
    vi.useFakeTimers();
    const sent: number[][] = [];
    let accept = false;
    const batcher = made(async (items) => {
      sent.push(items);
      await new Promise((resolve) => setTimeout(resolve, 20));
      return accept;
    });
    for (const n of [1, 2, 3]) batcher.add(n);
    batcher.add(4);
    void batcher.flush();
    await vi.advanceTimersByTimeAsync(100);
    expect(sent).toEqual([[1, 2, 3]]);
    accept = true;
    await vi.advanceTimersByTimeAsync(1000);
    expect(sent).toEqual([[1, 2, 3], [1, 2, 3], [4]]);
  });

  test("a full queue drops its oldest and counts it, and a send that throws is a refusal", async () => {
    vi.useFakeTimers();
    const dropped: number[] = [];
    const batcher = new MessageBatcher<number>({ send: () => Promise.reject(new Error("away")), everyMs: 50, maxItems: 10, maxQueued: 2, onFull: (item) => dropped.push(item) });
    for (const n of [1, 2, 3]) batcher.add(n);
    await vi.advanceTimersByTimeAsync(100);
    expect([batcher.size, batcher.dropped, dropped]).toEqual([2, 1, [1]]);
    await batcher.close();
  });
});

describe("Outbox", () => {
  test("a write is retried with the same id until it has an answer, in order", async () => {
    vi.useFakeTimers();
    const answers: Outcome<unknown>[] = [{ kind: "retry", message: "away" }, { kind: "done", data: null }, { kind: "duplicate", message: "23505" }, { kind: "refused", message: "no" }];
    const tried: string[] = [];
    const outbox = new Outbox<string>(async (id) => (tried.push(id), answers.shift()!));
    for (const id of ["a", "b", "c"]) outbox.add(id, id);
    await vi.advanceTimersByTimeAsync(500);
    expect(tried).toEqual(["a", "a", "b", "c"]);
    expect(outbox.unsettled().map(({ id, state, message }) => [id, state, message])).toEqual([["c", "failed", "no"]]);
    answers.push({ kind: "done", data: null });
    outbox.retry("c");
    await vi.advanceTimersByTimeAsync(10);
    expect(outbox.unsettled()).toEqual([]);
  });

  test("an entry whose row arrived is not sent again", async () => {
    vi.useFakeTimers();
    const tried: string[] = [];
    const outbox = new Outbox<string>(async (id) => (tried.push(id), { kind: "retry", message: "" }));
    outbox.add("a", "a");
    await vi.advanceTimersByTimeAsync(10);
    const states: string[] = [];
    outbox.on("change", ({ state }) => states.push(state));
    outbox.drop("a");
    expect(states).toEqual(["stored"]);
    await vi.advanceTimersByTimeAsync(10_000);
    expect(tried).toEqual(["a"]);
  });

  test("at most a thousand writes wait", () => {
    const outbox = new Outbox<number>(() => new Promise(() => undefined));
    for (let n = 0; n < 1000; n++) expect(outbox.add(String(n), n)).toBe(true);
    expect(outbox.add("one more", 1)).toBe(false);
  });
});

test("an answer of supabase-js is classified: done, retry, duplicate or refused", () => {
  const kind = (status: number, code?: string): string => outcome({ data: null, error: code === undefined ? null : { code, message: "m" }, status }).kind;
  expect([kind(201), kind(0, ""), kind(401, "PGRST303"), kind(503, "PGRST000"), kind(429, ""), kind(409, "23505"), kind(403, "42501"), kind(400, "22P02")]).toEqual([
    "done", "retry", "retry", "retry", "retry", "duplicate", "refused", "refused",
  ]);
});

describe("EventRing", () => {
  const point = (id: number, at: number, value = at): Point => ({ id: String(id), at, value, name: "e", dims: {} });
  const values = (ring: EventRing): number[] => ring.points.map(({ value }) => value);

  test("points are ordered by event time regardless of arrival, and the oldest are evicted", () => {
    const ring = new EventRing(3);
    for (const at of [5, 1, 3, 4]) ring.put(point(at, at));
    expect(values(ring)).toEqual([3, 4, 5]);
    expect(ring.put(point(2, 2))).toBe("late");
    expect([values(ring), ring.late]).toEqual([[3, 4, 5], 1]);
  });

  test("a duplicate point is ignored, also after its eviction, and equal times are ordered by id", () => {
    const ring = new EventRing(2);
    for (const id of [9, 10, 11]) ring.put(point(id, 1, id));
    expect(values(ring)).toEqual([10, 11]);
    expect(ring.put(point(9, 1, 9))).toBe("duplicate");
  });

  test("an update replaces and may move; a delete of a full ring says that it is short", () => {
    const ring = new EventRing(3);
    for (const at of [1, 2, 3]) ring.put(point(at, at));
    expect(ring.replace(point(1, 4, 40))).toBe("replaced");
    expect([values(ring), ring.short]).toEqual([[2, 3, 40], false]);
    ring.remove("2");
    expect([values(ring), ring.short]).toEqual([[3, 40], true]);
    ring.reset([point(8, 8), point(7, 7)]);
    expect([values(ring), ring.short]).toEqual([[7, 8], false]);
  });

  test("missing time is a break, invalid rows are no points, microseconds are ordered", () => {
    const ring = new EventRing(5);
    for (const at of [1000, 2000, 9000]) ring.put(point(at, at, 1));
    expect(ring.pairs(3000)[1]).toEqual([1, 1, null, 1]);
    expect(pointOf({ id: 1, at: "yesterday", value: 1 })).toMatch(/time/);
    for (const value of [null, "7", Number.NaN, Infinity]) expect(pointOf({ id: 1, at: "2026-01-01T00:00:00Z", value })).toMatch(/number/);
    const at = (text: string): number => (pointOf({ id: 1, at: text, value: 1 }) as Point).at;
    expect(at("2026-01-01T00:00:00.123457+00:00")).toBeGreaterThan(at("2026-01-01T00:00:00.123456+00:00"));
  });

  test("buckets keep mean, least and most, and only so many steps", () => {
    const buckets = new Buckets(100, 2);
    for (const [at, value] of [[0, 1], [50, 3], [100, 5], [250, 7]] as const) buckets.add(point(at, at, value));
    expect(buckets.series().slice(1)).toEqual([[5, 7], [5, 7], [5, 7]]);
  });
});

describe("strokes", () => {
  test("points survive Postgres' bytea, with and without its prefix", () => {
    const points = [1, 2, 0.5, 4096, 0, 1];
    expect(fromHex(toHex(points))).toEqual(points);
    expect(fromHex(toHex(points).slice(2))).toEqual(points);
    for (const text of ["", "\\x", "\\x00", "zz".repeat(12), 7, null]) expect(fromHex(text)).toBeUndefined();
  });

  test("an invalid list of points is refused, and points outside are moved to the edge", () => {
    expect(pointsOf([-5, 9999, 3])).toEqual([0, 4096, 1]);
    for (const value of ["abc", [1, 2], [1, 2, Number.NaN], [1, "2", 3], Array.from({ length: 30_000 }, () => 1)]) expect(pointsOf(value)).toBeUndefined();
    expect(styleOf({ color: "url(x)", size: 1e9 })).toEqual({ color: "#808080", size: 200 });
  });

  test("a pointer that jumps over a stroke touches it, one that passes beside it does not", () => {
    const stroke = [0, 0, 0.5, 100, 0, 0.5, 100, 100, 0.5];
    expect(touches(stroke, 5, [50, -90], [50, 90])).toBe(true);
    expect(touches(stroke, 5, [60, 60], [140, 50])).toBe(true);
    expect(touches(stroke, 5, [50, 4], [50, 4])).toBe(true);
    expect(touches(stroke, 5, [50, 6], [90, 90])).toBe(false);
    expect(touches(stroke, 5, [-6, 0], [-6, 0])).toBe(false);
    expect(touches([7, 7, 0.5], 5, [0, 7], [20, 7])).toBe(true);
    expect(touches([], 5, [0, 0], [1, 1])).toBe(false);
  });

  test("a stroke requests missing points, ignores duplicates, and ends at its limit", () => {
    const stroke = new LiveStroke("s", "ana", styleOf({}), 0);
    expect(stroke.add(0, [1, 1, 0.5])).toBeUndefined();
    expect(stroke.add(2, [3, 3, 0.5])).toBe(1);
    expect(stroke.add(0, [1, 1, 0.5, 2, 2, 0.5])).toBeUndefined();
    expect(stroke.points).toEqual([1, 1, 0.5, 2, 2, 0.5]);
    stroke.total = 3;
    expect(stroke.lacking()).toBe(2);
    for (let n = 0; n < 1_000_000; n += 2000) stroke.add(stroke.points.length / 3, Array.from({ length: 6000 }, () => 1));
    expect(stroke.points.length / 3).toBe(POINTS_MAX);
  });
});

describe("who lacks what in a document", () => {
  const typed = (text: string): Y.Doc => {
    const doc = new Y.Doc();
    doc.getText("text").insert(0, text);
    return doc;
  };

  test("both sides of a sync get the missing updates", async () => {
    vi.useFakeTimers();
    const [a, b] = [typed("left"), typed("right")];
    const asks: Record<string, MissingUpdates> = {};
    const link = (doc: Y.Doc, other: string, otherDoc: Y.Doc): MissingUpdates =>
      new MissingUpdates(doc, async (event, bytes) => {
        if (event === "sync1") asks[other]!.asked(bytes);
        else Y.applyUpdate(otherDoc, bytes);
        return true;
      });
    asks.a = link(a, "b", b);
    asks.b = link(b, "a", a);
    asks.a.ask();
    await vi.advanceTimersByTimeAsync(3000);
    expect(a.getText("text").toString()).toBe(b.getText("text").toString());
    expect(missing(new Map([[1, 5]]), new Map([[1, 5], [2, 0]]))).toBe(false);
  });

  test("one answer is enough, and invalid state vectors are ignored", async () => {
    vi.useFakeTimers();
    const doc = typed("text");
    const said: string[] = [];
    const asks = new MissingUpdates(doc, async (event) => (said.push(event), true));
    asks.asked(Y.encodeStateVector(new Y.Doc()));
    asks.answered(Y.encodeStateAsUpdate(doc));
    asks.asked(new Uint8Array([255, 255, 255]));
    await vi.advanceTimersByTimeAsync(1000);
    expect(said).toEqual([]);
  });
});

test("a signal is taken only with all of its members, and a description only as offer or answer", () => {
  const good = { from: "a", to: "b", call: "c", seq: 1 };
  expect(signalOf({ ...good, description: { type: "offer", sdp: "v=0" } })).toMatchObject({ description: { type: "offer" } });
  expect(signalOf({ ...good, candidate: null })).toMatchObject({ candidate: null });
  for (const bad of [null, {}, { ...good, to: 7 }, { ...good, seq: "1" }, { ...good, description: { type: "rollback", sdp: "" } }, { ...good, description: { type: "offer", sdp: "x".repeat(300_000) } }, { ...good, candidate: "x" }])
    expect(signalOf(bad)).toBeUndefined();
});

test("a slow answer is no clock difference, and one is reported from two seconds on", () => {
  const served = Date.parse("2026-01-01T00:00:10Z");
  expect(certainSkew(served, served - 20_000, served + 20_000)).toBe(0);
  expect(certainSkew(served, served - 3_600_000, served - 3_599_000)).toBe(3_599_000);
  expect(certainSkew(served, served + 3_600_000, served + 3_601_000)).toBe(-3_599_000);
  expect(skewText(1900)).toBe("");
  expect(skewText(61_000)).toContain("61 s behind");
  expect(skewText(-5000)).toContain("5 s ahead");
});
