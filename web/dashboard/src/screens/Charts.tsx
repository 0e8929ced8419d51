// The past of the daemon's metrics.
import type { JSX } from "preact";
import { readSeries } from "../api.ts";
import { clock, count } from "../format.ts";
import { type Range, rangeParams } from "../lanes.ts";
import { useRead } from "../read.ts";
import { go, href, query, setQuery } from "../route.ts";
import { path, pointsOf } from "../series.ts";
import type { Series } from "../types.ts";
import { Panel, Trouble, Twin } from "../ui.tsx";
import { Brush } from "./Brush.tsx";

interface Chart {
  title: string;
  name: string;
  unit: "per second" | "bytes" | "";
}

const CHARTS: readonly Chart[] = [
  { title: "Tasks requested", name: "convoke_tasks_requested_total", unit: "per second" },
  { title: "Tasks awarded", name: "convoke_tasks_awarded_total", unit: "per second" },
  { title: "Tasks failed", name: "convoke_tasks_failed_total", unit: "per second" },
  { title: "Log behind", name: "convoke_wal_lag_bytes", unit: "bytes" },
  { title: "Log kept by the server", name: "convoke_wal_retained_bytes", unit: "bytes" },
  { title: "Websockets", name: "convoke_gateway_connections", unit: "" },
  { title: "Messages delivered", name: "convoke_hub_deliveries_total", unit: "per second" },
  { title: "Slow clients disconnected", name: "convoke_hub_slow_disconnects_total", unit: "per second" },
  { title: "Hints dropped", name: "convoke_task_notices_dropped_total", unit: "per second" },
];

const STEPS = { "15 minutes": "1s", "24 hours": "1m" } as const;
export function Charts({ org }: { org: string }): JSX.Element {
  const step = query.value.get("step") === "1m" ? "1m" : "1s";
  const { data, error } = useRead(`series ${step}`, (abort) => readSeries(CHARTS.map(({ name }) => name), step, abort), () => true, step === "1s" ? 5000 : 60_000).value;
  const chips = (
    <span class="inline" role="group" aria-label="Range of the charts">
      {Object.entries(STEPS).map(([text, of]) => <button key={of} type="button" class="chip" aria-pressed={of === step} onClick={() => setQuery({ step: of === "1s" ? "" : of }, { replace: true })}>{text}</button>)}
    </span>
  );
  return (
    <Panel title="Over time" aside={chips}>
      {error ? <Trouble problem={error} /> : null}
      <p class="soft">Drag over a chart to see what the agents did in that time.</p>
      {data ? <div class="charts">{CHARTS.map((chart) => <Line key={chart.name} org={org} chart={chart} series={data} />)}</div> : error ? null : <p class="soft" role="status">Loading…</p>}
    </Panel>
  );
}

function figure(value: number | null | undefined, unit: Chart["unit"]): string {
  if (value === null || value === undefined) return "–";
  if (unit === "bytes") return value < 10_240 ? `${count(Math.round(value))} B` : value < 10_485_760 ? `${count(Math.round(value / 1024))} KiB` : `${count(Math.round(value / 1_048_576))} MiB`;
  const text = value < 10 ? String(Math.round(value * 100) / 100) : count(Math.round(value));
  return unit ? `${text} / s` : text;
}

function Line({ org, chart, series }: { org: string; chart: Chart; series: Series }): JSX.Element {
  const { values, times } = pointsOf(chart.name, series);
  const known = values.filter((value) => value !== null);
  const most = known.length ? Math.max(...known) : null;
  const at = (seconds: number | undefined): string => (seconds === undefined ? "" : clock(new Date(seconds * 1000).toISOString()));
  const said = `${chart.title}: ${figure(values.at(-1), chart.unit)} now, ${figure(most, chart.unit)} at most since ${at(times[0])}`;
  const lanes = (range: Range): void => go(`${href(org, "lanes")}?${new URLSearchParams({ ...rangeParams(range) })}`);
  const figureOf = (
    <figure class="spark">
      <svg viewBox="0 0 100 30" preserveAspectRatio="none" role="img" aria-label={said}><path d={path(values)} /></svg>
      <figcaption><span>{at(times[0])}</span><span>at most {figure(most, chart.unit)}</span></figcaption>
    </figure>
  );
  const range = { from: (times[0] ?? 0) * 1000, to: (times.at(-1) ?? 0) * 1000 };
  const drawn = range.from < range.to ? <Brush area="svg" range={range} onRange={lanes}>{figureOf}</Brush> : figureOf;
  const table = (
    <table><caption class="hidden">{chart.title}</caption>
      <thead><tr><th>Time</th><th class="number">{chart.title}</th></tr></thead>
      <tbody>{values.map((value, row) => <tr key={times[row]}><td>{at(times[row])}</td><td class="number">{figure(value, chart.unit)}</td></tr>).reverse()}</tbody>
    </table>
  );
  return <section class="chart" aria-label={chart.title}><h3>{chart.title} <b>{figure(values.at(-1), chart.unit)}</b></h3><Twin label={`Values of ${chart.title}`} chart={drawn} table={table} /></section>;
}
