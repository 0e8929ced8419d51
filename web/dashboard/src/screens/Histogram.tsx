// A histogram with its sentence and its table.
import type { JSX } from "preact";
import { Twin } from "../ui.tsx";

export interface Step {
  label: string;
  n: number;
  /** What is remarkable about this step, in a word. */
  mark?: string;
}

/** `unit` names what the steps are steps of, `counted` what is counted. Empty steps at both ends are left out. */
export function Histogram({ label, sentence, unit, counted, steps }: { label: string; sentence: string; unit: string; counted: string; steps: readonly Step[] }): JSX.Element {
  const most = Math.max(1, ...steps.map(({ n }) => n));
  const drawn = steps.slice(steps.findIndex(({ n }) => n > 0), steps.findLastIndex(({ n }) => n > 0) + 1);
  // A line for the mark under every bar: all stand on one line.
  const hasMark = drawn.some(({ mark }) => mark);
  return (
    <>
      <p>{sentence}</p>
      <Twin
        label={label}
        chart={
          <div class="histogram" role="img" aria-label={sentence}>
            {drawn.map(({ label: step, n, mark }) => <span key={step}><span class="soft">{n || ""}</span><span class={`histogram-bar ${mark ? "marked" : ""}`} style={{ height: `${(n / most) * 6}em` }} /><small>{step}</small>{hasMark ? <small><b>{mark ?? "\u00a0"}</b></small> : null}</span>)}
          </div>
        }
        table={<table class="plain-table"><caption class="hidden">{counted} by {unit.toLowerCase()}</caption><thead><tr><th>{unit}</th><th class="number">{counted}</th></tr></thead><tbody>{drawn.map(({ label: step, n, mark }) => <tr key={step}><th scope="row">{step}{mark ? ` (${mark})` : ""}</th><td class="number">{n}</td></tr>)}</tbody></table>}
      />
    </>
  );
}
