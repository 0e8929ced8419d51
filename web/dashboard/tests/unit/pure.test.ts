// The parts of the page that need no browser.
import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { ExactNumber, parseExact, pretty } from "../../src/exact.ts";
import { idAt, timeOf, toParams, toggled, typedTime } from "../../src/filter.ts";
import { ONE, WEIGHTS, canRank, rank, segments, weighted } from "../../src/score.ts";
import { type Changed, LINES_MAX, current, isNew, patch, put } from "../../src/store.ts";
import { USUAL, columnsOf, moved, withColumn } from "../../src/columns.ts";
import { quantile, spread } from "../../src/durations.ts";
import { ticketOf } from "../../src/session.ts";
import { orgsOf, turnOf } from "../../src/wall.ts";
import { chosen, packed, rangeOf, rangeParams } from "../../src/lanes.ts";
import { byHour, grouped } from "../../src/spend.ts";
import { budgetOf } from "../../src/limits.ts";
import { match } from "../../src/match.ts";
import { words } from "../../src/words.ts";
import { type GroupBy, groupByOf, groupOf, inGroups } from "../../src/groups.ts";
import { drawnPlaces, spreadOfTotals } from "../../src/totals.ts";
import { bodyOf, trialOf } from "../../src/request.ts";
import { browserOf } from "../../src/browser.ts";
import { means, path, pointsOf, rates } from "../../src/series.ts";
import { nested } from "../../src/tree.ts";
import type { Award, Bar, Line, Offer, Score, Spent, Weights } from "../../src/types.ts";

interface StoredRound {
  award: Award;
  weights: Weights | null;
  offers: [agent: string, arrival: number, total: number, cost: number, speed: number, confidence: number, load: number, reputation: number, waited: number, success: number | null][];
  others: Record<string, [string, number][]>;
}

const score = (parts: Partial<Score>): Score => ({ total: 0, cost: 0, speed: 0, confidence: 0, load: 0, reputation: 0, waited: 0, ...parts });
const offer = (agent_id: string, parts: Partial<Score>, offered_at = "2026-01-01T00:00:00Z"): Offer => ({ agent_id, cost_microdollars: 0, eta_ms: 0, confidence: 0, score: score(parts), offered_at });
const line = (id: string, version: number): Line => ({ id, version }) as Line;

describe("ranking", () => {
  test("segments add up to the weighted total but for rounding", () => {
    let seed = 7;
    const random = (max: number): number => (seed = (seed * 48_271) % 2_147_483_647) % max;
    for (let i = 0; i < 500; i++) {
      const parts = score({ cost: random(ONE + 1), speed: random(ONE + 1), confidence: random(ONE + 1), load: random(ONE + 1), reputation: random(ONE + 1) });
      const weights = { cost: random(1001), speed: random(1001), confidence: random(1001), load: random(1001), reputation: 1 + random(1000) };
      const sum = segments(weights, parts).reduce((sum, { share }) => sum + share, 0);
      expect(Math.abs(sum - weighted(weights, parts))).toBeLessThan(1.001);
      expect(Number.isInteger(weighted(weights, parts))).toBe(true);
    }
  });
  test("each policy has its winner, and ties go to the longest wait, then to the lower id", () => {
    const dear = offer("dear", { cost: 2_000, speed: ONE, confidence: 900_000, load: 100_000, waited: 3 }, "2026-01-01T00:00:02Z");
    const cheap = offer("cheap", { cost: ONE, speed: 12_000, confidence: 200_000, load: 200_000, waited: 2 }, "2026-01-01T00:00:01Z");
    const free = offer("free", { cost: 4_000, speed: 20_000, confidence: 500_000, load: ONE, waited: 1 }, "2026-01-01T00:00:03Z");
    const winner = (...[award, weights = null]: Parameters<typeof rank> extends [infer A, infer W, unknown] ? [A, W?] : never): string | undefined => rank(award, weights, [dear, cheap, free])[0]?.offer.agent_id;
    expect(winner("cheapest")).toBe("cheap");
    expect(winner("fastest")).toBe("dear");
    expect(winner("least_loaded")).toBe("free");
    expect(winner("first")).toBe("cheap");
    expect(winner("weighted", { cost: 0, speed: 0, confidence: 1, load: 0, reputation: 0 })).toBe("dear");
    const tied = [offer("b", { cost: 5, waited: 1 }), offer("a", { cost: 5, waited: 1 }), offer("c", { cost: 5, waited: 0 })];
    expect(rank("cheapest", null, tied).map(({ offer }) => offer.agent_id)).toEqual(["c", "a", "b"]);
  });
  test("200 rounds of the daemon have the same ranks and totals in every digit, by every policy", () => {
    // Written by src/task/rounds/score/page.rs.
    const rounds = readFileSync(new URL("rounds.jsonl", import.meta.url), "utf8").trim().split("\n").map((line) => JSON.parse(line) as StoredRound);
    expect(rounds.length).toBe(200);
    for (const { award, weights, offers, others } of rounds) {
      const stored = offers.map(([agent_id, arrival, total, cost, speed, confidence, load, reputation, waited, success]) =>
        offer(agent_id, { total, cost, speed, confidence, load, reputation, waited, ...(success === null ? {} : { success }) }, `2026-01-01T00:00:00.00000${arrival}+00:00`));
      const ranked = (by: Award, of: Weights | null): [string, number][] => rank(by, of, [...stored].reverse()).map(({ offer, total }) => [offer.agent_id, total]);
      expect(canRank(award, stored)).toBe(true);
      expect(ranked(award, weights), "what if with its own policy is the actual ranking").toEqual(offers.map(([agent_id, , total]) => [agent_id, total]));
      for (const [other, totals] of Object.entries(others)) expect(ranked(other as Award, WEIGHTS), other).toEqual(totals);
    }
  });
  test("a policy that the stored scores do not support is not offered", () => {
    const offers = [offer("a", {}), offer("b", {})];
    expect(canRank("cheapest", offers)).toBe(true);
    expect(canRank("calibrated", offers)).toBe(false);
    expect(canRank("first", offers), "offers of one instant").toBe(false);
    expect(canRank("weighted", [])).toBe(false);
    expect(canRank("direct", offers)).toBe(false);
  });
});

describe("store", () => {
  test("the highest version of a line wins in any order of answers", () => {
    const answers = [[line("a", 1), line("b", 1)], [line("a", 3)], [line("b", 2), line("a", 2)]];
    const orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    for (const order of orders) {
      const store = order.reduce((store, at) => put(store, answers[at] ?? []), new Map<string, Line>() as ReadonlyMap<string, Line>);
      expect(current(store, ["a", "b"]).map((line) => line.version)).toEqual([3, 2]);
    }
  });
  test("the least recently read lines go first", () => {
    let store = put(new Map(), Array.from({ length: LINES_MAX }, (_, at) => line(`${at}`, 1)));
    store = put(put(store, [line("0", 2)]), [line("new", 1)]);
    expect(store.size).toBe(LINES_MAX);
    expect([store.has("0"), store.has("1"), store.has("new")]).toEqual([true, false, true]);
  });
});

describe("digests", () => {
  const changed = (id: string, version: number, state: string): Changed => ({ id, version, state, progress: null }) as Changed;
  const known = (id: string, version: number, state: string): Line => ({ id, version, state, progress: null }) as Line;
  test("a change is shown at once, and read only if the page does not have it", () => {
    const store = put(new Map(), [known("a", 2, "open"), known("b", 5, "running")]);
    expect(isNew(store, changed("a", 3, "running"))).toBe(true);
    expect(isNew(store, changed("b", 5, "running")), "the page has read this version").toBe(false);
    expect(isNew(store, changed("c", 1, "open"))).toBe(true);
    const patched = patch(store, [changed("a", 3, "running"), changed("b", 4, "awarded"), changed("c", 1, "open")]);
    expect(current(patched, ["a", "b", "c"]).map(({ id, state }) => `${id} ${state}`), "an older change is ignored").toEqual(["a running", "b running"]);
    // The answer that has the change replaces the line.
    expect(current(put(patched, [known("a", 3, "running")]), ["a"])[0]?.version).toBe(3);
  });
  test("any order of digests, answers and losses ends in the newest versions", () => {
    let seed = 11;
    const random = (max: number): number => (seed = (seed * 48_271) % 2_147_483_647) % max;
    const states = ["open", "awarded", "running", "completed"];
    for (let round = 0; round < 200; round++) {
      let store: ReadonlyMap<string, Line> = new Map();
      const truth = new Map<string, number>();
      for (let step = 0; step < 30; step++) {
        const id = `${random(3)}`;
        const version = (truth.get(id) ?? 0) + random(2);
        truth.set(id, Math.max(1, version));
        const read = 1 + random(truth.get(id) ?? 1);
        const state = (at: number): string => states[Math.min(at, states.length) - 1] ?? "";
        // An answer or a digest of any earlier version, or none.
        if (random(3)) store = random(2) ? put(store, [known(id, read, state(read))]) : patch(store, [changed(id, read, state(read))]);
      }
      // The snapshot after a gap.
      const snapshot = [...truth].map(([id, version]) => known(id, version, states[Math.min(version, states.length) - 1] ?? ""));
      store = put(store, snapshot);
      expect(current(store, [...truth.keys()])).toEqual(snapshot);
    }
  });
});

describe("forms", () => {
  test("the input of a request keeps every digit", () => {
    expect(bodyOf(" a.b ", "", '{"n": 9007199254740993}')).toBe('{"kind":"a.b","requires":["a.b"],"input":{"n": 9007199254740993}}');
    expect(bodyOf("a", "x, y,", "")).toBe('{"kind":"a","requires":["x","y"],"input":null}');
    expect(() => bodyOf("a", "", "{")).toThrow("no JSON");
    expect(trialOf("INSERT", ' {"n": 9007199254740993}')).toBe('{"event":"INSERT","row":{"n": 9007199254740993}}');
    expect(trialOf("DELETE", " ")).toBe('{"event":"DELETE","row":{}}');
    expect(() => trialOf("INSERT", "{")).toThrow("The row is no JSON");
  });
  test("limits are dollars and tokens, and an empty field is none", () => {
    expect(budgetOf({ dollars: "0.25", tokens: "" })).toEqual({ microdollars: 250_000 });
    expect(budgetOf({ treeTokens: "7" })).toEqual({ tree: { tokens: 7 } });
    for (const bad of [{}, { dollars: "much" }, { tokens: "-1" }, { dollars: "Infinity" }] as Record<string, string>[]) expect(() => budgetOf(bad)).toThrow();
  });
});

describe("palette", () => {
  test("the best match is first, and letters in order are enough", () => {
    const texts = ["Tasks", "Tasks that failed in the last hour", "Switchboard", "keyword"];
    const found = (typed: string): string[] => match(typed, texts, (text) => text);
    expect(found("")).toEqual(texts);
    expect(found("tas")[0]).toBe("Tasks");
    expect(found("failed")).toEqual(["Tasks that failed in the last hour"]);
    expect(found("kwd")).toEqual(["keyword"]);
    expect(found("zz")).toEqual([]);
  });
});

describe("lanes and spending", () => {
  test("bars of a row do not overlap, and the last row takes the rest", () => {
    const bar = (begin: number, end: number | null): Bar => ({ awarded_at: new Date(begin).toISOString(), ended_at: end === null ? null : new Date(end).toISOString() }) as Bar;
    const bars = [bar(0, 10), bar(5, 20), bar(10, 15), bar(6, null)];
    expect(packed(bars, 100, 8).map((row) => row.length)).toEqual([2, 1, 1]);
    expect(packed(bars, 100, 1).map((row) => row.length)).toEqual([4]);
    expect(packed([], 100, 8)).toEqual([]);
  });
  test("sums are of all rows, and hours without money are there", () => {
    const hour = Date.parse("2026-11-30T10:00:00Z");
    const row = (agent_id: string, kind: string, at: number, microdollars: number): Spent => ({ hour: new Date(at).toISOString(), agent_id, kind, attempts: 1, tokens: 2, microdollars, presumed: agent_id === "b", reserved: 0 });
    const rows = [row("a", "x", hour, 5), row("b", "x", hour, 7), row("a", "y", hour - 3_600_000, 1)];
    const hours = byHour(rows, hour + 60_000, 1);
    expect(hours.length).toBe(24);
    expect(hours.slice(-3).map(({ microdollars }) => microdollars)).toEqual([0, 1, 12]);
    expect(grouped(rows, "agent").map(({ name, microdollars, presumed }) => [name, microdollars, presumed])).toEqual([["b", 7, true], ["a", 6, false]]);
    expect(grouped(rows, "kind").map(({ name, attempts }) => [name, attempts])).toEqual([["x", 2], ["y", 1]]);
  });
});

describe("tree", () => {
  test("each part follows its parent, also one whose parent is not shown", () => {
    const part = (id: string, parent_id: string | null): Line => ({ id, parent_id }) as Line;
    const rows = nested([part("4", "2"), part("3", "1"), part("1", null), part("2", "1"), part("9", "8")]);
    expect(rows.map(({ line, depth }) => `${depth}${line.id}`)).toEqual(["01", "12", "24", "13", "09"]);
    expect(nested([part("1", "2"), part("2", "1"), part("3", "3")]).length, "rows in a circle are shown").toBe(3);
  });
});

describe("filter", () => {
  test("times are relative or absolute", () => {
    const now = Date.parse("2026-11-30T12:00:00Z");
    expect(timeOf("1h", now)).toBe("2026-11-30T11:00:00.000Z");
    expect(timeOf("-7d", now)).toBe("2026-11-23T12:00:00.000Z");
    expect(timeOf("2026-11-29T14:03:00Z", now)).toBe("2026-11-29T14:03:00.000Z");
    expect(timeOf("soon", now)).toBeNull();
  });
  test("a time that is typed means the same in every zone once it is in the address", () => {
    const now = Date.parse("2026-11-30T12:00:30Z");
    expect(typedTime("11:03", now, true)).toBe("2026-11-30T11:03Z");
    expect(typedTime("14:03:07", now, true), "it has not come yet, so yesterday's").toBe("2026-11-29T14:03:07Z");
    expect(typedTime("2026-11-29 14:03", now, true)).toBe("2026-11-29T14:03Z");
    expect(typedTime("2026-11-29T14:03:00+02:00", now, true)).toBe("2026-11-29T12:03Z");
    for (const kept of ["1h", "-7d", "soon", "24:00", "12:60", ""]) expect(typedTime(kept, now, true)).toBe(kept);
    const local = new Date(now);
    local.setHours(0, 0, 0, 0);
    expect(Date.parse(typedTime("0:00", now, false))).toBe(local.getTime());
    for (const written of ["11:03", "2026-11-29 14:03"]) expect(timeOf(typedTime(written, now, false), now), "what is in the address is a time").not.toBeNull();
  });
  test("an id of a time lies between the tasks before and after it", () => {
    expect(idAt("1970-01-01T00:00:00.255Z")).toBe("00000000-00ff-7000-8000-000000000000");
    expect(idAt("2026-11-30T12:00:00Z") < idAt("2026-11-30T12:00:00.001Z")).toBe(true);
    expect(idAt("1969-01-01T00:00:00Z")).toBe("00000000-0000-7000-8000-000000000000");
  });
  test("fields become the daemon's parameters", () => {
    expect(toParams({ state: "open", agent: "a", since: "soon", until: "soon" }, 0)).toEqual({ state: "open", kind: null, agent_id: "a", requester: null, since: null, before: null });
    expect(toParams({ until: "1s" }, 1001).before).toBe(idAt("1970-01-01T00:00:00.001Z"));
    expect(toggled("open,running", "open")).toBe("running");
    expect(toggled(undefined, "open")).toBe("open");
  });
});

describe("JSON as it is stored", () => {
  test("numbers beyond a double stay what they were", () => {
    const text = '{"id":9007199254740993,"small":1.5,"list":[],"text":"ä"}';
    const value = parseExact(text) as { id: unknown };
    // Node.js 20 has no source text of numbers in a reviver; browsers have it.
    if (value.id instanceof ExactNumber) expect(pretty(value)).toContain("9007199254740993");
    expect(pretty(value)).toContain('"small": 1.5');
    expect(pretty({ a: {}, b: [1] })).toBe('{\n  "a": {},\n  "b": [\n    1\n  ]\n}');
    expect(pretty(new ExactNumber("9007199254740993"))).toBe("9007199254740993");
  });
});

describe("figures over time", () => {
  test("a counter is shown as what it rises by in a second, and a restart or a hole is unknown", () => {
    expect(rates([10, 11, 13, 14, 15], [0, 5, 9, 2, null])).toEqual([null, 5, 2, null, null]);
    expect(rates([10], [1])).toEqual([null]);
    expect(rates([10, 10], [1, 2]), "two samples of one second").toEqual([null, null]);
  });
  test("neighbours become their mean", () => {
    expect(means([1, 3, null, 5, null, null, 8], 2)).toEqual([2, 5, null, 8]);
    expect(means([], 3)).toEqual([]);
  });
  test("a line has a gap where a value is unknown, and 0 at the bottom", () => {
    expect(path([0, 10, null, 5])).toBe("M0.00 29.00L33.33 1.00M100.00 15.00");
    expect(path([])).toBe("");
    expect(path([0])).toBe("M0.00 29.00");
  });
  test("a chart has at most its points, each with the time of its end", () => {
    const times = Array.from({ length: 900 }, (_, at) => 1000 + at);
    const { values, times: ends } = pointsOf("x_total", { at: "", step_seconds: 1, times, values: { x_total: times.map((at) => at * 3) } });
    expect([values.length, ends.length, ends.at(-1), values.at(-1)]).toEqual([90, 90, 1899, 3]);
    expect(pointsOf("none", { at: "", step_seconds: 1, times, values: {} }).values).toEqual([]);
  });
});

describe("columns of the list", () => {
  test("what is stored is read, without unknown names and doubles, and always with the task", () => {
    expect(columnsOf(JSON.stringify(["cost", "nonsense", "task", "cost", 7]))).toEqual(["cost", "task"]);
    expect(columnsOf(JSON.stringify(["kind"]))).toEqual(["task", "kind"]);
    for (const text of [null, "", "{", "{}", "7", "null"]) expect(columnsOf(text)).toBe(USUAL);
  });
  test("a column is added at the end, moved to the left and taken away", () => {
    expect(withColumn(["task", "kind"], "cost", true)).toEqual(["task", "kind", "cost"]);
    expect(moved(["task", "kind", "cost"], "cost")).toEqual(["task", "cost", "kind"]);
    expect(moved(["task", "kind"], "task")).toEqual(["task", "kind"]);
    expect(moved(["task", "kind"], "cost")).toEqual(["task", "kind"]);
    expect(withColumn(["task", "cost", "kind"], "cost", false)).toEqual(["task", "kind"]);
  });
});

describe("orgs of a wall", () => {
  const of = (query: string): [readonly string[], number] => [orgsOf(new URLSearchParams(query), "demo"), turnOf(new URLSearchParams(query))];
  test("are those of the address, each once, for at least five seconds", () => {
    expect(of("")).toEqual([["demo"], 30_000]);
    expect(of("orgs=a, b,,a&every=60")).toEqual([["a", "b"], 60_000]);
    expect(of("orgs=,&every=1")).toEqual([["demo"], 5000]);
    expect(of("every=-7")).toEqual([["demo"], 5000]);
    expect(of("every=soon")).toEqual([["demo"], 30_000]);
  });
});

describe("ranges of lanes", () => {
  const noon = Date.parse("2026-11-29T12:00:00Z");
  test("an address names both ends, or the last one, or none", () => {
    expect(rangeOf(null, null, 60_000)).toBeNull();
    expect(rangeOf("2026-11-29T11:00:00Z", null, 60_000), "a beginning alone follows the present").toBeNull();
    expect(rangeOf(null, "2026-11-29T12:00:00Z", 60_000)).toEqual({ from: noon - 60_000, to: noon });
    expect(rangeOf("2026-11-29T11:00:00Z", "2026-11-29T12:00:00Z", 60_000)).toEqual({ from: noon - 3_600_000, to: noon });
    for (const bad of ["soon", "2026-11-29T12:00:00Z", "2026-11-30T00:00:00Z", "2026-11-28T11:59:59Z"]) expect(rangeOf(bad, "2026-11-29T12:00:00Z", 60_000), bad).toEqual({ from: noon - 60_000, to: noon });
    expect(rangeOf(null, "soon", 60_000)).toBeNull();
  });
  test("a drag chooses a part, in either direction, of at least a second", () => {
    const hour = { from: noon - 3_600_000, to: noon };
    expect(chosen(hour, 0.5, 0.75)).toEqual({ from: noon - 1_800_000, to: noon - 900_000 });
    expect(chosen(hour, 0.75, 0.5)).toEqual(chosen(hour, 0.5, 0.75));
    expect(chosen(hour, 0.5, 0.5)).toEqual({ from: noon - 1_800_000, to: noon - 1_799_000 });
    expect(rangeParams(hour)).toEqual({ from: "2026-11-29T11:00:00.000Z", to: "2026-11-29T12:00:00.000Z" });
  });
});

describe("groups of tasks", () => {
  test("each group stands where its first task is, with its tasks in their order", () => {
    const lines = [["1", "b"], ["2", "a"], ["3", "b"], ["4", "c"], ["5", "a"]].map(([id, kind]) => ({ id, kind, agent_id: kind === "c" ? null : "x", root_id: id, state: "open", requester: "r" }) as unknown as Line);
    const of = (by: GroupBy): [string, string[]][] => inGroups(lines, (line) => groupOf(line, by)).map(({ name, lines }) => [name, lines.map(({ id }) => id)]);
    expect(of("kind")).toEqual([["b", ["1", "3"]], ["a", ["2", "5"]], ["c", ["4"]]]);
    expect(of("agent")).toEqual([["x", ["1", "2", "3", "5"]], ["", ["4"]]]);
    expect(of("state")).toEqual([["open", ["1", "2", "3", "4", "5"]]]);
    expect(of("tree")).toHaveLength(5);
  });
  test("an unknown grouping of an address is none", () => {
    expect([groupByOf("kind"), groupByOf("color"), groupByOf(null)]).toEqual(["kind", null, null]);
  });
});

test("names of the daemon are shown as words", () => {
  expect(words("result_refused_by_a_trigger")).toBe("result refused by a trigger");
  expect(words("agent")).toBe("agent");
});

describe("many offers of a round", () => {
  test("totals are counted by twentieths, a whole one in the last", () => {
    const steps = spreadOfTotals([0, 49_999, 50_000, 999_999, 1_000_000, 612_000]);
    expect(steps).toHaveLength(20);
    expect(steps.reduce((sum, n) => sum + n, 0)).toBe(6);
    expect([steps[0], steps[1], steps[12], steps[19]]).toEqual([2, 1, 1, 2]);
  });
  test("the best 40 are drawn, and those around a winner of a lower rank", () => {
    expect(drawnPlaces(30, 3)).toHaveLength(30);
    expect(drawnPlaces(500, 0)).toHaveLength(40);
    expect(drawnPlaces(500, -1)).toHaveLength(40);
    expect(drawnPlaces(500, 100).slice(39)).toEqual([39, 98, 99, 100, 101, 102]);
    expect(drawnPlaces(101, 100).slice(39)).toEqual([39, 98, 99, 100]);
  });
});

describe("durations", () => {
  test("each is in the step that does not exceed it, the slowest in the last", () => {
    const steps = spread([0, 100, 101, 3000, 3_600_000, 3_600_001, 1e12]);
    expect(steps).toEqual([2, 1, 0, 1, 0, 0, 0, 0, 0, 1, 2]);
    expect(spread([]).every((n) => n === 0)).toBe(true);
  });
  test("a quantile is a duration that occurred", () => {
    const durations = [50, 10, 30, 20, 40, 60, 100, 80, 90, 70];
    expect([quantile(durations, 0.5), quantile(durations, 0.9), quantile(durations, 1)]).toEqual([50, 90, 100]);
    expect(quantile([7], 0.5)).toBe(7);
    expect(quantile([], 0.5)).toBeNaN();
  });
});

describe("what was pasted to sign in", () => {
  const signed = (claims: object): string => `e30.${Buffer.from(JSON.stringify(claims)).toString("base64url")}.x`;
  test("is a link, a code, or a token of another issuer", () => {
    const [code, token] = [signed({ use: "login", sub: "ana", org: "demo" }), signed({ role: "authenticated", sub: "ana", org: "demo" })];
    expect(ticketOf(` http://127.0.0.1:7700/dashboard/#code=${code} `)).toEqual({ code });
    expect(ticketOf(code)).toEqual({ code });
    expect(ticketOf(token)).toEqual({ token });
    for (const text of ["", "nonsense", "a.b.c", signed([]), signed({ sub: "ana" }), signed({ role: 7 })]) expect(ticketOf(text)).toBeNull();
  });
});

describe("the name of a browser", () => {
  test.each([
    ["Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0", "Firefox, Linux"],
    ["Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Safari/537.36", "Chrome, Windows"],
    ["Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Safari/537.36 Edg/141.0.0.0", "Edge, Windows"],
    ["Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.0 Mobile/15E148 Safari/604.1", "Safari, iPhone"],
    ["curl/8.5.0", "curl/8.5.0"],
    [null, "unknown"],
  ])("%s", (agent, name) => {
    expect(browserOf(agent)).toBe(name);
  });
});
