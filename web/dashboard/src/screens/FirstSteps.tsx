// A newcomer's first minute: three steps on the switchboard that tick themselves by what the daemon says has happened.
import { signal } from "@preact/signals";
import type { JSX } from "preact";
import { useEffect } from "preact/hooks";
import { readFeed, readLines } from "../api.ts";
import { useRead } from "../read.ts";
import { href } from "../route.ts";
import { authorize, isOperator, session } from "../session.ts";
import type { Agent, Negotiation } from "../types.ts";
import { Copy, Panel } from "../ui.tsx";
import { RequestTask } from "./RequestTask.tsx";

const STEPS = ["requested", "answered", "moved"] as const;
type Step = (typeof STEPS)[number];
/** `hidden`, or the steps that are done. It stays in this browser. */
const KEY = "first-steps";
/** Answers that are looked at. */
const ANSWERS_MAX = 100;
/** Interval of the looks: they search the newest tasks and events, which is work on a busy daemon. */
const EVERY_MS = 10_000;

const kept = signal(localStorage.getItem(KEY) ?? "");

function keep(value: string): void {
  kept.value = value;
  localStorage.setItem(KEY, value);
}

/** Shows the steps again. */
export const showFirstSteps = (): void => keep("");

/** What this person has done. */
async function readDone(me: string, abort: AbortSignal): Promise<Step[]> {
  const [{ tasks }, { events }] = await Promise.all([readLines({ requester: me, limit: 1 }, abort), readFeed({ types: "answered", limit: ANSWERS_MAX }, abort)]);
  const isMine = (body: unknown): boolean => (body as { by?: unknown } | null)?.by === me;
  return [...(tasks.length ? ["requested" as const] : []), ...(events.some(({ body }) => isMine(body)) ? ["answered" as const] : [])];
}

export function FirstSteps({ org, agents, awards }: { org: string; agents: Agent[]; awards: Negotiation[] }): JSX.Element | null {
  return isOperator.value && kept.value !== "hidden" ? <Steps org={org} agents={agents} awards={awards} /> : null;
}

function Steps({ org, agents, awards }: { org: string; agents: Agent[]; awards: Negotiation[] }): JSX.Element {
  const me = session.value.is === "in" ? `user:convoke#${session.value.session.user}` : "";
  const { data } = useRead(`first steps ${me}`, (abort) => readDone(me, abort), () => true, EVERY_MS).value;
  const done = new Set<string>([...kept.value.split(" "), ...(data ?? []), ...(awards.some(({ epoch }) => epoch > 1) ? ["moved"] : [])]);
  useEffect(() => {
    const now = STEPS.filter((step) => done.has(step)).join(" ");
    if (kept.peek() !== "hidden" && now !== kept.peek()) keep(now);
  });
  const step = (name: Step, title: string, children: JSX.Element): JSX.Element => (
    <li class={done.has(name) ? "done" : ""}><b><span aria-hidden="true">{done.has(name) ? "✓" : "○"}</span> {title}<span class="hidden">{done.has(name) ? ", done" : ""}</span></b>{children}</li>
  );
  // A kind that an agent can do, with the input of its last task where the overview has all of it.
  const kind = agents.find(({ status }) => status === "present")?.capabilities[0] ?? "";
  const input = awards.find((award) => award.kind === kind && isJson(award.input_preview))?.input_preview ?? '{"text": "hello"}';
  const isAll = STEPS.every((name) => done.has(name));
  return (
    <Panel title={isAll ? "That was all" : "First steps"} class="first-steps" aside={<button type="button" class="quiet small" onClick={() => keep("hidden")}>{isAll ? "Close" : "Hide"}<span class="hidden"> the first steps; the help (?) shows them again</span></button>}>
      <ol>
        {step("requested", "Request a task", <RequestTask org={org} label="Request one…" kind={kind} input={input} />)}
        {step("answered", "Answer an agent", <small>Questions wait in the <a href={href(org, "inbox")}>inbox</a>; the agent goes on with the answer.</small>)}
        {step("moved", "Stop an agent at work", <small>Kill its program, like <code>pkill -9 -f keyword.sh</code>. Its task gets a new epoch, and the next offer wins it.</small>)}
      </ol>
      <Client org={org} />
    </Panel>
  );
}

function isJson(text: string | null): boolean {
  try {
    return text !== null && typeof JSON.parse(text) === "object";
  } catch {
    // The preview is cut.
    return false;
  }
}

/** What this page does, as a program of the reader's own. */
function Client({ org }: { org: string }): JSX.Element {
  const key = useRead("anon key", async () => (await authorize()).anonKey, () => false).value.data ?? "";
  const code = `import { createClient } from "@supabase/supabase-js";
const client = createClient("${location.origin}", "${key}");
const room = client.channel("org:${org}");
room.on("presence", { event: "sync" }, () => console.log(room.presenceState()));
room.on("broadcast", { event: "coordination" }, ({ payload }) => console.log(payload));
room.subscribe();`;
  return (
    <details>
      <summary>This page is a client like yours</summary>
      <pre tabIndex={0}>{code}</pre>
      <Copy text={code}>Copy</Copy>
    </details>
  );
}
