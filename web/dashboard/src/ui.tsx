// Parts that every screen uses.
import { useSignal } from "@preact/signals";
import type { ComponentChildren, JSX } from "preact";
import { useId } from "preact/hooks";
import { absolute, clock, duration, money, now, shortId, since } from "./format.ts";
import { href } from "./route.ts";
import { ONE, segments } from "./score.ts";
import type { Problem } from "./session.ts";
import { type Award, type Offer, PARTS, type TaskState, type Weights } from "./types.ts";
import { words } from "./words.ts";

/** Icon and word of each state; the colour only repeats them. */
const ICONS: Record<string, string> = {
  open: "○", scheduled: "◷", blocked: "⊟", awarded: "◔", running: "▶", waiting: "?", verifying: "◎",
  canceling: "◌", completed: "✓", failed: "✕", canceled: "⊘",
};

export function State({ state, reason }: { state: TaskState | string; reason?: string | null }): JSX.Element {
  return (
    <span class={`state state-${state}`}>
      <span aria-hidden="true">{ICONS[state] ?? "·"}</span> {state}
      {reason ? <span class="soft"> ({words(reason)})</span> : null}
    </span>
  );
}

/** A moment: relative, with the absolute time behind it. */
export function Ago({ at }: { at: string }): JSX.Element {
  return <time dateTime={at} title={absolute(at)}>{since(at)} ago</time>;
}

export function At({ at, millis = false }: { at: string; millis?: boolean }): JSX.Element {
  return <time dateTime={at} title={absolute(at)}>{clock(at, millis)}</time>;
}

const TIME = /(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d))/;

/** A sentence of the daemon; the times in it are shown like all others. */
export function Sentence({ text }: { text: string }): JSX.Element {
  return <>{text.split(TIME).map((part, i) => (i % 2 ? <At key={i} at={part} /> : part))}</>;
}

export function TaskLink({ org, id, children }: { org: string; id: string; children?: ComponentChildren }): JSX.Element {
  return <a href={href(org, "tasks", id)} title={id}>{children ?? <code>{shortId(id)}</code>}</a>;
}

export function AgentLink({ org, id }: { org: string; id: string }): JSX.Element {
  return <a class="agent" href={href(org, "agents", id)}><AgentDot id={id} />{id}</a>;
}

/** A colour of the agent, by its id; the id always stands beside it. */
export function AgentDot({ id }: { id: string }): JSX.Element {
  let hash = 0;
  for (const c of id) hash = (hash * 31 + c.charCodeAt(0)) % 360;
  return <span class="dot" aria-hidden="true" style={{ "--hue": String(hash) }} />;
}

export function Progress({ value, label }: { value: number; label: string }): JSX.Element {
  const percent = Math.round(Math.min(1, Math.max(0, value)) * 100);
  return (
    <span class="progress" role="img" aria-label={`${label}: ${percent} %`}>
      <span class="progress-bar" style={{ width: `${percent}%` }} />
      <span class="progress-text">{percent} %</span>
    </span>
  );
}

/** The slots of an agent: used ones are filled. */
export function Slots({ used, all }: { used: number; all: number }): JSX.Element {
  const dots = all <= 12 ? Array.from({ length: all }, (_, at) => <i key={at} class={at < used ? "used" : ""} />) : null;
  return (
    <span class="slots">
      {dots ? <span class="slot-dots" aria-hidden="true">{dots}</span> : null}
      <span>{used} / {all}<span class="hidden"> slots used</span></span>
    </span>
  );
}

/** The bar of an offer: its length is the total, its segments are what the parts contribute. */
export function OfferBar({ offer, award, weights }: { offer: Offer; award: Award | null; weights: Weights | null }): JSX.Element {
  const score = offer.score;
  if (!score) return <span class="offer-bar unranked" aria-hidden="true" />;
  // A chosen offer has a total of 2 so that it wins; its bar shows nothing about it.
  if (score.total > ONE) return <span class="offer-bar chosen">chosen by the requester</span>;
  const parts = weights ? segments(weights, score).map(({ part, share }) => <span key={part} class={`segment part-${part}`} title={`${part}: ${weights[part]} × ${(score[part] / ONE).toFixed(3)} → ${(share / ONE).toFixed(3)}`} style={{ width: `${share / 10_000}%` }} />) : null;
  const single = { cheapest: "cost", fastest: "speed", least_loaded: "load", calibrated: "confidence" } as const;
  const part = award && award in single ? single[award as keyof typeof single] : "plain";
  const lost = award === "calibrated" ? Math.max(0, score.confidence - score.total) : 0;
  return (
    <span class="offer-bar" aria-hidden="true">
      {parts ?? <span class={`segment part-${part}`} style={{ width: `${score.total / 10_000}%` }} />}
      {lost ? <span class="segment lost" title="confidence that its measured success does not confirm" style={{ width: `${lost / 10_000}%` }} /> : null}
    </span>
  );
}

/** What the segments mean. */
export function Legend(): JSX.Element {
  return (
    <ul class="legend" aria-label="Parts of a score">
      {PARTS.map((part) => <li key={part}><span class={`swatch part-${part}`} aria-hidden="true" />{part}</li>)}
    </ul>
  );
}

/** A chart with its table twin. */
export function Twin({ label, chart, table }: { label: string; chart: ComponentChildren; table: ComponentChildren }): JSX.Element {
  const isTable = useSignal(false);
  const id = useId();
  return (
    <div class="twin">
      <div id={id}>{isTable.value ? <div class="scroll" tabIndex={0} role="region" aria-label={label}>{table}</div> : chart}</div>
      <button type="button" class="quiet small" aria-controls={id} aria-pressed={isTable.value} onClick={() => (isTable.value = !isTable.value)}>
        {isTable.value ? "Show as chart" : "Show as table"}
      </button>
    </div>
  );
}

export function Copy({ text, children }: { text: string; children: ComponentChildren }): JSX.Element {
  const done = useSignal("");
  const copy = async (): Promise<void> => {
    const worked = await write(text);
    done.value = worked ? "copied" : "select and copy it by hand";
    setTimeout(() => (done.value = ""), 2000);
  };
  return (
    <button type="button" class="quiet small" onClick={() => void copy()}>
      {children}
      <span role="status">{done.value ? ` – ${done.value}` : ""}</span>
    </button>
  );
}

/** Over plain http to another machine there is no clipboard API. */
async function write(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    const worked = document.execCommand("copy");
    area.remove();
    return worked;
  }
}

const ADVICE: Record<number, string> = {
  [-1]: "This is a fault of the page. The other screens still work.",
  0: "It is tried again by itself.",
  401: "Run `convoke dashboard` for a link that signs you in.",
  403: "You may not see this.",
  404: "It may have been deleted by retention, or it belongs to another org.",
  429: "There were too many requests. It is tried again by itself.",
  503: "The database may be away. It is tried again by itself.",
};

export function Trouble({ problem }: { problem: Problem }): JSX.Element {
  return (
    <div class="notice bad" role="alert">
      <strong>{problem.message}</strong>
      <p>{ADVICE[problem.status] ?? ""}</p>
    </div>
  );
}

export function Empty({ title, children }: { title: string; children?: ComponentChildren }): JSX.Element {
  return (
    <div class="empty">
      <h2>{title}</h2>
      {children}
    </div>
  );
}

export function Panel({ title, aside, children, class: extra = "" }: { title: string; aside?: ComponentChildren; children: ComponentChildren; class?: string }): JSX.Element {
  const id = useId();
  return (
    <section class={`panel ${extra}`} aria-labelledby={id}>
      <header><h2 id={id}>{title}</h2>{aside}</header>
      {children}
    </section>
  );
}

export function Money({ value, presumed = false }: { value: number | null | undefined; presumed?: boolean }): JSX.Element {
  return <span title={presumed ? "not reported: what was reserved counts" : undefined}>{presumed ? "≤ " : ""}{money(value)}</span>;
}

/** Time until a moment, in whole seconds if it is near; empty when it has passed. */
export function left(at: string | null): string {
  if (!at) return "";
  const ms = Date.parse(at) - now.value;
  if (ms <= 0) return "";
  return ms < 120_000 ? `${Math.ceil(ms / 1000)} s` : duration(ms);
}
