// What each agent worked on, on one time axis.
import type { JSX } from "preact";
import { readLanes } from "../api.ts";
import { clock, duration, now } from "../format.ts";
import { packed } from "../lanes.ts";
import { useRead } from "../read.ts";
import { go, href, query, setQuery } from "../route.ts";
import type { Bar } from "../types.ts";
import { AgentLink, At, Empty, State, TaskLink, Trouble, Twin } from "../ui.tsx";

const RANGES: [string, number][] = [["5 min", 5], ["10 min", 10], ["1 h", 60], ["6 h", 360], ["24 h", 1440]];
/** Rows of an agent that are drawn; more bars overlap in the last one. */
const ROWS_MAX = 8;

export function Lanes({ org }: { org: string }): JSX.Element {
  const minutes = RANGES.find(([, of]) => String(of) === query.value.get("minutes"))?.[1] ?? 10;
  // An end in the past stands still, and a link shows another person the same.
  const until = query.value.get("to");
  const end = until ? Date.parse(until) : Number.NaN;
  const isFixed = Number.isFinite(end);
  const { data, error } = useRead(`lanes ${org} ${minutes} ${until ?? ""}`, (abort) => {
    const to = isFixed ? end : now.value;
    return readLanes({ from: new Date(to - minutes * 60_000).toISOString(), to: new Date(to).toISOString() }, abort);
  }, () => !isFixed, 1000).value;
  const to = isFixed ? end : now.value;
  const from = to - minutes * 60_000;
  const move = (share: number): void => setQuery({ to: new Date(to + share * minutes * 60_000).toISOString() }, { replace: true });
  const agents = new Map<string, Bar[]>();
  for (const bar of data?.bars ?? []) agents.set(bar.agent_id, [...(agents.get(bar.agent_id) ?? []), bar]);
  const sorted = [...agents].sort((a, b) => (a[0] < b[0] ? -1 : 1));
  return (
    <>
      <h1>Lanes</h1>
      <div class="list-head">
        <a href={href(org, "agents")}>Agents as a list</a>
        <div class="inline" role="group" aria-label="Range">
          {RANGES.map(([text, of]) => <button key={of} type="button" class="chip" aria-pressed={of === minutes} onClick={() => setQuery({ minutes: String(of) }, { replace: true })}>{text}</button>)}
        </div>
        <div class="inline" role="group" aria-label="Time">
          <button type="button" class="small" onClick={() => move(-0.5)}>◀ Earlier</button>
          <button type="button" class="small" disabled={!isFixed} onClick={() => move(0.5)}>Later ▶</button>
          <button type="button" class="small" aria-pressed={!isFixed} onClick={() => setQuery({ to: "" }, { replace: true })}>Follow now</button>
        </div>
        <span role="status" class="soft">{data ? `${data.bars.length}${data.more ? "+" : ""} attempts` : "Loading…"}</span>
      </div>
      {error ? <Trouble problem={error} /> : null}
      {data?.more ? <p class="soft">Only the newest 5,000 attempts are shown: choose a shorter range.</p> : null}
      {data && !sorted.length ? <Empty title="No agent worked in this time" /> : null}
      {sorted.length ? <Twin label="Attempts" chart={<Chart org={org} lanes={sorted} from={from} to={to} />} table={<BarTable org={org} bars={data?.bars ?? []} />} /> : null}
    </>
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
                    return <span key={bar.assignment_id} class={`span ${bar.ended_at ? `run end-${bar.state}` : bar.state === "waiting" ? "end-waiting" : "run"}`} style={{ left: `${begin}%`, width: `${width}%` }} onClick={() => go(href(org, "tasks", bar.task_id))} title={`${bar.kind}: ${bar.state.replaceAll("_", " ")}, ${duration((bar.ended_at ? Date.parse(bar.ended_at) : to) - Date.parse(bar.awarded_at))}`} />;
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
