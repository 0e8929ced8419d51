// The attempts of a task on one time axis.
import type { JSX } from "preact";
import { between, duration, now } from "../format.ts";
import { type Attempt, FINAL, type Why } from "../types.ts";
import { AgentDot, At, Empty, Money, Twin } from "../ui.tsx";
import { words } from "../words.ts";

const TICKS = 4;

export function Timeline({ org, why }: { org: string; why: Why }): JSX.Element {
  void org;
  const { task, attempts } = why;
  if (!attempts.length) return <Empty title="No attempt yet"><p>An attempt begins with an award.</p></Empty>;
  return <Twin label="Attempts" chart={<Chart why={why} attempts={attempts} />} table={<Table attempts={attempts} requestedAt={task.created_at} />} />;
}

function Chart({ why, attempts }: { why: Why; attempts: Attempt[] }): JSX.Element {
  const { task } = why;
  const begin = Date.parse(task.created_at);
  const end = Math.max(FINAL.has(task.state) ? Date.parse(task.updated_at) : now.value, begin + 1, ...attempts.map((attempt) => Date.parse(attempt.ended_at ?? task.created_at)));
  const percent = (ms: number): number => Math.min(100, Math.max(0, ((ms - begin) / (end - begin)) * 100));
  const span = (from: number, to: number): { left: string; width: string } => ({ left: `${percent(from)}%`, width: `${Math.max(0.3, percent(to) - percent(from))}%` });
  const first = attempts[0];
  const summary = `${attempts.length} ${attempts.length === 1 ? "attempt" : "attempts"} in ${duration(end - begin)}${first?.awarded_at ? `; open for ${duration(between(task.created_at, first.awarded_at))} before the first award` : ""}. An outline is an award that was not accepted yet.`;
  return (
    <div class="timeline">
      <p>{summary}</p>
      <div class="ticks" aria-hidden="true">
        <span />
        <span class="ticks-line">{Array.from({ length: TICKS + 1 }, (_, at) => <span key={at} style={{ left: `${(at / TICKS) * 100}%` }}>{duration(((end - begin) * at) / TICKS)}</span>)}</span>
      </div>
      <ol>
        {attempts.map((attempt) => {
          const awarded = Date.parse(attempt.awarded_at ?? task.created_at);
          const started = attempt.started_at ? Date.parse(attempt.started_at) : null;
          const ended = attempt.ended_at ? Date.parse(attempt.ended_at) : end;
          return (
            <li key={attempt.epoch}>
              <span class="who"><small class="soft">epoch {attempt.epoch}</small><span><AgentDot id={attempt.agent_id} />{attempt.agent_id}</span></span>
              <span class="track">
                <span class="span awarded" title="awarded, not accepted yet" style={span(awarded, started ?? ended)} />
                {started === null ? null : <span class={`span run end-${attempt.state}`} title={`${attempt.state}, ${duration(ended - started)}`} style={span(started, ended)} />}
              </span>
              <span class="outcome">{attempt.ended_at ? words(attempt.state) : `${attempt.state} now`} <span class="soft">{duration(ended - (started ?? awarded))}</span></span>
            </li>
          );
        })}
      </ol>
    </div>
  );
}

function Table({ attempts, requestedAt }: { attempts: Attempt[]; requestedAt: string }): JSX.Element {
  return (
    <table>
      <caption class="hidden">Attempts</caption>
      <thead><tr><th class="number">Epoch</th><th>Agent</th><th>Outcome</th><th>Awarded</th><th class="number">After the request</th><th class="number">Accepted after</th><th class="number">Ran for</th><th class="number">Tokens</th><th class="number">Cost</th></tr></thead>
      <tbody>
        {attempts.map((attempt) => (
          <tr key={attempt.epoch}>
            <td class="number">{attempt.epoch}</td><th scope="row">{attempt.agent_id}</th><td>{words(attempt.state)}{attempt.error ? `: ${attempt.error}` : ""}</td>
            <td>{attempt.awarded_at ? <At at={attempt.awarded_at} millis /> : "–"}</td>
            <td class="number">{duration(between(requestedAt, attempt.awarded_at))}</td>
            <td class="number">{duration(between(attempt.awarded_at, attempt.started_at))}</td>
            <td class="number">{duration(between(attempt.started_at, attempt.ended_at))}</td>
            <td class="number">{attempt.paid?.tokens ?? "–"}</td>
            <td class="number"><Money value={attempt.paid?.microdollars} presumed={attempt.paid?.presumed ?? false} /></td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}
