// What each agent worked on, on one time axis.
import { useSignal } from "@preact/signals";
import type { JSX } from "preact";
import { useRef } from "preact/hooks";
import { readLanes } from "../api.ts";
import { timeOf, typedTime } from "../filter.ts";
import { clock, duration, isUtc, now } from "../format.ts";
import { type Range, packed, rangeOf, rangeParams } from "../lanes.ts";
import { useRead } from "../read.ts";
import { go, href, query, setQuery } from "../route.ts";
import type { Bar } from "../types.ts";
import { AgentLink, At, Empty, State, TaskLink, Trouble, Twin } from "../ui.tsx";
import { words } from "../words.ts";
import { Brush } from "./Brush.tsx";

const RANGES: [string, number][] = [["5 min", 5], ["10 min", 10], ["1 h", 60], ["6 h", 360], ["24 h", 1440]];
/** Rows of an agent that are drawn; more bars overlap in the last one. */
const ROWS_MAX = 8;
const LONGEST_MS = 86_400_000;

export function Lanes({ org }: { org: string }): JSX.Element {
  const minutes = RANGES.find(([, of]) => String(of) === query.value.get("minutes"))?.[1] ?? 10;
  // An end in the past stands still, and a link shows another person the same.
  const [begin, end] = [query.value.get("from"), query.value.get("to")];
  const fixed = rangeOf(begin, end, minutes * 60_000);
  const present = (): Range => ({ from: now.value - minutes * 60_000, to: now.value });
  const { data, error } = useRead(`lanes ${org} ${minutes} ${begin ?? ""} ${end ?? ""}`, (abort) => readLanes(rangeParams(fixed ?? present()), abort), () => !fixed, 1000).value;
  const range = fixed ?? present();
  const length = range.to - range.from;
  const show = (range: Range): void => setQuery(rangeParams(range), { replace: true });
  const move = (share: number): void => show({ from: range.from + share * length, to: range.to + share * length });
  const agents = new Map<string, Bar[]>();
  for (const bar of data?.bars ?? []) agents.set(bar.agent_id, [...(agents.get(bar.agent_id) ?? []), bar]);
  const sorted = [...agents].sort((a, b) => (a[0] < b[0] ? -1 : 1));
  return (
    <>
      <h1>Lanes</h1>
      <div class="list-head">
        <a href={href(org, "agents")}>Agents as a list</a>
        <div class="inline" role="group" aria-label="Range">
          {RANGES.map(([text, of]) => <button key={of} type="button" class="chip" aria-pressed={of * 60_000 === length} onClick={() => setQuery({ minutes: String(of), from: "" }, { replace: true })}>{text}</button>)}
        </div>
        <div class="inline" role="group" aria-label="Time">
          <button type="button" class="small" onClick={() => move(-0.5)}>◀ Earlier</button>
          <button type="button" class="small" disabled={!fixed} onClick={() => move(0.5)}>Later ▶</button>
          <button type="button" class="small" aria-pressed={!fixed} onClick={() => setQuery({ from: "", to: "" }, { replace: true })}>Follow now</button>
        </div>
        <RangeFields range={range} onRange={show} />
        <span role="status" class="soft">{data ? `${data.bars.length}${data.more ? "+" : ""} attempts` : "Loading…"}</span>
      </div>
      <p class="soft">Drag over the lanes to look closer.{fixed ? <> <a href={`${href(org, "tasks")}?${new URLSearchParams({ since: rangeParams(fixed).from, until: rangeParams(fixed).to })}`}>Tasks that were requested in this time</a></> : null}</p>
      {error ? <Trouble problem={error} /> : null}
      {data?.more ? <p class="soft">Only the newest 5,000 attempts are shown: choose a shorter range.</p> : null}
      {data && !sorted.length ? <Empty title="No agent worked in this time" /> : null}
      {sorted.length ? <Twin label="Attempts" chart={<Brush area=".lane-rows" range={range} onRange={show}><Chart org={org} lanes={sorted} from={range.from} to={range.to} /></Brush>} table={<BarTable org={org} bars={data?.bars ?? []} />} /> : null}
    </>
  );
}

/** The range as two fields: what a drag over the chart chooses, by the keyboard. */
function RangeFields({ range, onRange }: { range: Range; onRange: (range: Range) => void }): JSX.Element {
  const fault = useSignal("");
  const [from, to] = [useRef<HTMLInputElement>(null), useRef<HTMLInputElement>(null)];
  const submit = (event: Event): void => {
    event.preventDefault();
    const time = (text: string): number => Date.parse(timeOf(typedTime(text, now.value, isUtc.value), now.value) ?? "");
    const typed = { from: time(from.current?.value ?? ""), to: time(to.current?.value || "0s") };
    fault.value = typed.from < typed.to && typed.to - typed.from <= LONGEST_MS ? "" : "Write two times like 14:03 and 14:05, or 10m and 5m, at most 24 hours apart.";
    if (!fault.value) onRange(typed);
  };
  const hint = (time: number): string => clock(new Date(time).toISOString());
  return (
    <form class="inline range-fields" aria-label="Range of time" onSubmit={submit}>
      <label>From <input ref={from} required autocomplete="off" spellcheck={false} placeholder={hint(range.from)} aria-invalid={fault.value ? true : undefined} /></label>
      <label>to <input ref={to} autocomplete="off" spellcheck={false} placeholder={hint(range.to)} /></label>
      <button type="submit" class="small">Show</button>
      {fault.value ? <span class="bad" role="alert">{fault.value}</span> : null}
    </form>
  );
}

/** The bars are for the pointer; the table twin has the links. */
function Chart({ org, lanes, from, to }: { org: string; lanes: [string, Bar[]][]; from: number; to: number }): JSX.Element {
  const at = (time: number): number => Math.min(100, Math.max(0, ((time - from) / (to - from)) * 100));
  const ticks = [0, 0.25, 0.5, 0.75, 1].map((share) => from + share * (to - from));
  return (
    <div class="lanes">
      {lanes.map(([agent, bars]) => {
        const rows = packed(bars, to, ROWS_MAX);
        const busy = bars.reduce((sum, bar) => sum + Math.max(0, Math.min(to, bar.ended_at ? Date.parse(bar.ended_at) : to) - Math.max(from, Date.parse(bar.awarded_at))), 0);
        return (
          <div key={agent} class="lane">
            <span class="who"><AgentLink org={org} id={agent} /><small>{bars.length} {bars.length === 1 ? "attempt" : "attempts"}, busy {duration(busy)}</small></span>
            <span class="lane-rows" role="img" aria-label={`${agent}: ${bars.length} attempts, busy for ${duration(busy)}`}>
              {rows.map((row, number) => (
                <span key={number} class="track">
                  {row.map((bar) => {
                    const begin = at(Date.parse(bar.awarded_at));
                    const width = Math.max(0.25, at(bar.ended_at ? Date.parse(bar.ended_at) : to) - begin);
                    return <span key={bar.assignment_id} class={`span ${bar.ended_at ? `run end-${bar.state}` : bar.state === "waiting" ? "end-waiting" : "run"}`} style={{ left: `${begin}%`, width: `${width}%` }} onClick={() => go(href(org, "tasks", bar.task_id))} title={`${bar.kind}: ${words(bar.state)}, ${duration((bar.ended_at ? Date.parse(bar.ended_at) : to) - Date.parse(bar.awarded_at))}`} />;
                  })}
                </span>
              ))}
            </span>
          </div>
        );
      })}
      <div class="lane lane-ticks"><span /><span class="ticks-line">{ticks.map((time) => <span key={time} style={{ left: `${at(time)}%` }}>{clock(new Date(time).toISOString())}</span>)}</span></div>
    </div>
  );
}

function BarTable({ org, bars }: { org: string; bars: Bar[] }): JSX.Element {
  return (
    <table>
      <caption class="hidden">Attempts, newest first</caption>
      <thead><tr><th>Agent</th><th>Task</th><th class="number">Epoch</th><th>State</th><th>Awarded</th><th class="number">Took</th></tr></thead>
      <tbody>{bars.slice(0, 500).map((bar) => <tr key={bar.assignment_id}><td><AgentLink org={org} id={bar.agent_id} /></td><td><TaskLink org={org} id={bar.task_id}>{bar.kind}</TaskLink></td><td class="number">{bar.epoch}</td><td><State state={bar.state} /></td><td><At at={bar.awarded_at} /></td><td class="number">{duration((bar.ended_at ? Date.parse(bar.ended_at) : now.value) - Date.parse(bar.awarded_at))}</td></tr>)}</tbody>
    </table>
  );
}
