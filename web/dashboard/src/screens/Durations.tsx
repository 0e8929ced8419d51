// How long the ended tasks of a filter took: a histogram of the newest ones.
import type { JSX } from "preact";
import { readLines } from "../api.ts";
import { LIMITS, quantile, spread } from "../durations.ts";
import { type Filter, toParams } from "../filter.ts";
import { count, duration, now } from "../format.ts";
import { useRead } from "../read.ts";
import { FINAL } from "../types.ts";
import { Panel, Trouble } from "../ui.tsx";
import { took } from "./Columns.tsx";
import { Histogram } from "./Histogram.tsx";

const NEWEST = 200;
const EVERY_MS = 5000;

/** The ended states of the filter; all of them if it names none. */
function ended(filter: Filter): string {
  const named = (filter.state ?? "").split(",").filter((state) => FINAL.has(state));
  return (named.length ? named : [...FINAL]).join(",");
}

export function Durations({ org, filter }: { org: string; filter: Filter }): JSX.Element {
  const state = ended(filter);
  const ask = async (abort: AbortSignal): Promise<number[]> => (await readLines({ ...toParams(filter, now.value), state, limit: NEWEST }, abort)).tasks.map(took);
  const { data, error } = useRead(`durations ${org} ${JSON.stringify(filter)}`, ask, () => true, EVERY_MS).value;
  return (
    <Panel title="Durations" class="durations" aside={<span class="soft">from the request to the end</span>}>
      {error ? <Trouble problem={error} /> : null}
      {!data && !error ? <p role="status">Loading…</p> : null}
      {data && !data.length ? <p class="soft">No task of this filter has ended.</p> : null}
      {data?.length ? <Spread durations={data} /> : null}
    </Panel>
  );
}

function Spread({ durations }: { durations: readonly number[] }): JSX.Element {
  const sentence = `Of the newest ${count(durations.length)}, half took at most ${duration(quantile(durations, 0.5))}, nine of ten at most ${duration(quantile(durations, 0.9))}.`;
  return <Histogram label="Durations" sentence={sentence} unit="Duration" counted="Tasks" steps={spread(durations).map((n, step) => ({ n, label: labelOf(step) }))} />;
}

function labelOf(step: number): string {
  const limit = LIMITS[step];
  return limit === undefined ? `over ${duration(LIMITS.at(-1) ?? 0)}` : `≤ ${duration(limit)}`;
}
