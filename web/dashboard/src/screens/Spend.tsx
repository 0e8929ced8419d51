// What attempts used: by hour, and by agent, kind or both.
import type { JSX } from "preact";
import { readSpend } from "../api.ts";
import { clock, count, money, now } from "../format.ts";
import { useRead } from "../read.ts";
import { query, setQuery } from "../route.ts";
import { type Group, byHour, grouped } from "../spend.ts";
import type { Spent } from "../types.ts";
import { AgentLink, Empty, Money, Panel, Trouble, Twin } from "../ui.tsx";

const RANGES: [string, number][] = [["1 day", 1], ["7 days", 7], ["30 days", 30]];
const GROUPS: readonly Group[] = ["agent", "kind"];

export function Spend({ org }: { org: string }): JSX.Element {
  const days = RANGES.find(([, of]) => String(of) === query.value.get("days"))?.[1] ?? 7;
  const by = GROUPS.find((group) => group === query.value.get("by")) ?? "agent";
  const { data, error } = useRead(`spend ${org} ${days}`, (abort) => readSpend({ from: new Date(now.value - days * 86_400_000).toISOString() }, abort), () => true, 5000).value;
  const rows = data?.rows ?? [];
  const total = rows.reduce((sum, row) => sum + row.microdollars, 0);
  const tokens = rows.reduce((sum, row) => sum + row.tokens, 0);
  const presumed = rows.some((row) => row.presumed);
  return (
    <>
      <h1>Spend</h1>
      <div class="list-head">
        <div class="inline" role="group" aria-label="Range">{RANGES.map(([text, of]) => <button key={of} type="button" class="chip" aria-pressed={of === days} onClick={() => setQuery({ days: String(of) }, { replace: true })}>{text}</button>)}</div>
        <div class="inline" role="group" aria-label="Grouped by">{GROUPS.map((group) => <button key={group} type="button" class="chip" aria-pressed={group === by} onClick={() => setQuery({ by: group }, { replace: true })}>by {group}</button>)}</div>
      </div>
      {error ? <Trouble problem={error} /> : null}
      {data?.partial ? <p class="notice wait">There is more than is shown: these are the newest 10,000 sums of an hour, an agent and a kind. Choose a shorter range for a total that is complete.</p> : null}
      {data && !rows.length ? <Empty title="Nothing was spent in this time" /> : null}
      {rows.length ? (
        <>
          <p class="big"><Money value={total} presumed={presumed} /> <span class="soft">and {count(tokens)} tokens in {count(rows.reduce((sum, row) => sum + row.attempts, 0))} attempts</span></p>
          <Panel title="By hour" class="round"><Twin label="Money by hour" chart={<Hours rows={rows} days={days} />} table={<HourTable rows={rows} />} /></Panel>
          <Panel title={`By ${by}`}><Groups org={org} rows={rows} by={by} /></Panel>
        </>
      ) : null}
    </>
  );
}

function Hours({ rows, days }: { rows: Spent[]; days: number }): JSX.Element {
  const hours = byHour(rows, now.value, days);
  const most = Math.max(1, ...hours.map(({ microdollars }) => microdollars));
  const highest = hours.reduce((best, hour) => (hour.microdollars > best.microdollars ? hour : best));
  return (
    <figure>
      <div class="hours" role="img" aria-label={`Money by hour; the most was ${money(highest.microdollars)} at ${clock(highest.hour)}`}>
        {hours.map(({ hour, microdollars }) => <span key={hour} title={`${clock(hour)}: ${money(microdollars)}`} style={{ height: `${(microdollars / most) * 100}%` }} />)}
      </div>
      <figcaption>{clock(hours[0]?.hour ?? "")} to now · the most in an hour: {money(highest.microdollars)}</figcaption>
    </figure>
  );
}

function HourTable({ rows }: { rows: Spent[] }): JSX.Element {
  const hours = [...new Set(rows.map(({ hour }) => hour))].map((hour) => [hour, rows.filter((row) => row.hour === hour)] as const);
  return (
    <table>
      <caption class="hidden">Money and tokens by hour</caption>
      <thead><tr><th>Hour</th><th class="number">Attempts</th><th class="number">Tokens</th><th class="number">Money</th></tr></thead>
      <tbody>{hours.map(([hour, list]) => <tr key={hour}><td>{clock(hour)}</td><td class="number">{count(list.reduce((sum, row) => sum + row.attempts, 0))}</td><td class="number">{count(list.reduce((sum, row) => sum + row.tokens, 0))}</td><td class="number">{money(list.reduce((sum, row) => sum + row.microdollars, 0))}</td></tr>)}</tbody>
    </table>
  );
}

function Groups({ org, rows, by }: { org: string; rows: Spent[]; by: Group }): JSX.Element {
  const groups = grouped(rows, by);
  const most = Math.max(1, ...groups.map(({ microdollars }) => microdollars));
  return (
    <div class="scroll" tabIndex={0} role="region" aria-label={`Money by ${by}`}>
      <table>
        <caption class="hidden">Money and tokens by {by}</caption>
        <thead><tr><th>{by === "agent" ? "Agent" : "Kind"}</th><th>Share</th><th class="number">Attempts</th><th class="number">Tokens</th><th class="number">Reserved now</th><th class="number">Money</th></tr></thead>
        <tbody>{groups.map((group) => (
          <tr key={group.name}>
            <th scope="row">{by === "agent" ? <AgentLink org={org} id={group.name} /> : group.name}</th>
            <td class="share"><span class="meter" aria-hidden="true"><span class="spent" style={{ width: `${(group.microdollars / most) * 100}%` }} /></span></td>
            <td class="number">{count(group.attempts)}</td><td class="number">{count(group.tokens)}</td><td class="number">{group.reserved ? money(group.reserved) : "–"}</td>
            <td class="number"><Money value={group.microdollars} presumed={group.presumed} /></td>
          </tr>
        ))}</tbody>
      </table>
    </div>
  );
}
