// The frame around every screen.
import { signal, useSignal, useSignalEffect } from "@preact/signals";
import { Component, type ComponentChildren, type JSX } from "preact";
import { useEffect, useMemo, useRef } from "preact/hooks";
import { answeredAt, readOverview } from "./api.ts";
import { Dialog } from "./dialog.tsx";
import { clock, isUtc, now } from "./format.ts";
import { HELP, hasLetters, isHelpOpen, setLetters } from "./keys.ts";
import { follow, isPaused, pause, status } from "./live.ts";
import { Palette, isPaletteOpen, setUtc } from "./palette.tsx";
import { useRead } from "./read.ts";
import { go, href, query, route } from "./route.ts";
import { Agent, Agents } from "./screens/Agents.tsx";
import { Channels, OneChannel } from "./screens/Channels.tsx";
import { showFirstSteps } from "./screens/FirstSteps.tsx";
import { Inbox } from "./screens/Inbox.tsx";
import { Lanes } from "./screens/Lanes.tsx";
import { Ask, Mark, SignIn } from "./screens/SignIn.tsx";
import { Spend } from "./screens/Spend.tsx";
import { System } from "./screens/System.tsx";
import { Switchboard } from "./screens/Switchboard.tsx";
import { Task } from "./screens/Task.tsx";
import { Tasks } from "./screens/Tasks.tsx";
import { Triggers } from "./screens/Triggers.tsx";
import { type Session, isAdmin, isExpired, isOperator, session, showOrg, signOut } from "./session.ts";
import { nextTheme, theme } from "./theme.ts";
import { keepAwake, orgsOf, turnOf } from "./wall.ts";
import { Empty } from "./ui.tsx";

export function App(): JSX.Element {
  const state = session.value;
  useSignalEffect(() => {
    document.documentElement.dataset.session = session.value.is;
    document.documentElement.dataset.live = status.value;
  });
  if (state.is === "loading") return <p class="boot" role="status">Loading…</p>;
  if (state.is === "out") return <main><SignIn message={state.message} /></main>;
  if (state.is === "ask") return <main><Ask user={state.user} org={state.org} ticket={state.ticket} current={state.session} /></main>;
  return <Frame key={`${state.session.user} ${state.session.org}`} session={state.session} />;
}

/** How many tasks wait for a person. */
const needs = signal(0);

/** The org that a wall shows now; without a wall that of the session. Only an admin reads others. */
function useOrg({ org, role }: Session, isWall: boolean): string {
  const turn = useSignal(0);
  const orgs = isWall && role === "admin" ? orgsOf(query.value, org) : [org];
  const everyMs = turnOf(query.value);
  useEffect(() => {
    if (orgs.length < 2) return;
    const timer = setInterval(() => !isPaused.value && (turn.value += 1), everyMs);
    return () => clearInterval(timer);
  }, [orgs.join(), everyMs]);
  return orgs[turn.value % orgs.length] ?? org;
}

function Frame({ session }: { session: Session }): JSX.Element {
  const isWall = route.value.screen === "switchboard" && query.value.get("wall") === "1";
  const org = useOrg(session, isWall);
  // Before anything below is drawn: its readings are of this org.
  useMemo(() => showOrg(org), [org]);
  useEffect(() => follow(org), [org]);
  const overview = useRead(`needs ${org}`, readOverview, () => true, 2000);
  useSignalEffect(() => {
    needs.value = Object.values(overview.value.data?.needs ?? {}).reduce((sum, n) => sum + n, 0);
  });
  const version = overview.value.data?.health.version;
  const loaded = useRef(version);
  loaded.current ??= version;
  useEffect(() => {
    document.documentElement.toggleAttribute("data-wall", isWall);
    return isWall ? keepAwake() : undefined;
  }, [isWall]);
  return (
    <div class="frame">
      {isWall ? <WallBar org={org} home={session.org} /> : <><a class="skip" href="#main">Skip to the content</a><Bar session={session} /><Menu org={session.org} /></>}
      <main id="main" tabIndex={-1} class={status.value === "no connection" ? "stale" : ""}>
        {version === loaded.current ? null : <div class="notice wait" role="status"><strong>Version {version} of the daemon runs now, and this page is of {loaded.current}.</strong> <button type="button" class="small" onClick={() => location.reload()}>Reload the page</button></div>}
        <EndsSoon session={session} />
        <Boundary key={`${JSON.stringify(route.value)} ${org}`}><Screen session={session} shown={org} /></Boundary>
      </main>
      <Help org={session.org} />
      <Palette org={session.org} />
      {isExpired.value ? <Dialog label="Your session has ended" isOpen onClose={() => undefined}><SignIn message={null} title="Your session has ended" /></Dialog> : null}
    </div>
  );
}

/** The end of a session is told this long before. */
const TOLD_BEFORE_MS = 120_000;

/** Says that the session is about to end, and takes a new link without leaving the page. */
function EndsSoon({ session: { expires_at } }: { session: Session }): JSX.Element | null {
  const isOpen = useSignal(false);
  const left = Date.parse(expires_at) - now.value;
  if (!(left < TOLD_BEFORE_MS) || isExpired.value) return null;
  return (
    <div class="notice wait" role="status">
      <strong>Your session {left > 0 ? "ends" : "ended"} at {clock(expires_at)}.</strong> With a new link you go on here, and what you typed stays.{" "}
      <button type="button" class="small" onClick={() => (isOpen.value = true)}>Sign in again…</button>
      <Dialog label="Sign in again" isOpen={isOpen.value} onClose={() => (isOpen.value = false)}><SignIn message={null} title="Sign in again" /></Dialog>
    </div>
  );
}

/** `shown`: the org whose switchboard is on the wall now. */
function Screen({ session: { org }, shown }: { session: Session; shown: string }): JSX.Element {
  const current = route.value;
  const isOther = "org" in current && current.org !== org;
  useEffect(() => {
    if (current.screen === "start") go(href(org), { replace: true });
    if (current.screen === "find") go(href(org, "tasks", current.id), { replace: true });
  }, [current.screen]);
  const name = { switchboard: org, tasks: "Tasks", task: "Task", inbox: "Inbox", channels: "Channels", channel: "topic" in current ? current.topic : "", system: "System", lanes: "Lanes", triggers: "Triggers", spend: "Spend", agents: "Agents", agent: "id" in current ? current.id : "", start: org, find: "Task", missing: "Not found" }[current.screen];
  const waiting = needs.value;
  useEffect(() => {
    document.title = `${waiting ? `(${waiting}) ` : ""}${name} · Convoke`;
  }, [name, waiting]);
  if (isOther) return <Empty title={`This link is about org ${current.org}`}><p>You are signed in for org {org}. <code>convoke dashboard --org {current.org}</code> prints a link for the other one.</p></Empty>;
  switch (current.screen) {
    case "switchboard": return <Switchboard org={shown} />;
    case "tasks": return <Tasks org={org} />;
    case "task": return <Task key={current.id} org={org} id={current.id} tab={current.tab} />;
    case "lanes": return <Lanes org={org} />;
    case "triggers": return <Triggers org={org} />;
    case "spend": return <Spend org={org} />;
    case "channels": return <Channels org={org} />;
    case "channel": return <OneChannel key={current.topic} org={org} topic={current.topic} />;
    case "system": return <System org={org} />;
    case "inbox": return <Inbox org={org} />;
    case "agents": return <Agents org={org} />;
    case "agent": return <Agent key={current.id} org={org} id={current.id} />;
    case "missing": return <Empty title="There is no such page"><p><a href={href(org)}>Switchboard</a></p></Empty>;
    default: return <p class="boot">Loading…</p>;
  }
}

/** All that stands above the switchboard on a wall. */
function WallBar({ org, home }: { org: string; home: string }): JSX.Element {
  return (
    <header class="bar">
      <span class="brand"><Mark /><b>{org}</b></span>
      <Live />
      <span class="grow" />
      <time class="clock">{clock(new Date(now.value).toISOString())}{isUtc.value ? " UTC" : ""}</time>
      <a class="button" href={href(home)}>Leave the wall<span class="hidden"> (Esc)</span></a>
    </header>
  );
}

function Bar({ session }: { session: Session }): JSX.Element {
  return (
    <header class="bar">
      <a class="brand" href={href(session.org)} aria-label="Convoke, Switchboard"><Mark /><b>Convoke</b></a>
      <span class="org">{session.org}</span>
      <span class="grow" />
      <button type="button" class="quiet" title="Go to a screen, agent or task (Ctrl K)" onClick={() => (isPaletteOpen.value = true)}>⌕<span class="wide-only"> Go to…</span><span class="hidden"> Go to</span></button>
      <Live />
      <button type="button" class="quiet" aria-pressed={isPaused.value} title="Pause (p)" onClick={() => pause(!isPaused.value)}>{isPaused.value ? "Resume" : "Pause"}</button>
      <button type="button" class="quiet wide-only" title="Local time or UTC (z)" onClick={() => setUtc(!isUtc.value)}>{isUtc.value ? "UTC" : "local time"}</button>
      <button type="button" class="quiet wide-only" title="Theme (t)" onClick={nextTheme}>◐ <span class="hidden">Theme: </span>{theme.value}</button>
      <button type="button" class="quiet" title="Keys (?)" onClick={() => (isHelpOpen.value = true)}>?<span class="hidden"> Keys</span></button>
      <span class="user wide-only">{session.user} <span class="soft">({session.role})</span></span>
      <button type="button" class="quiet" onClick={() => void signOut()}>Sign out</button>
    </header>
  );
}

function Live(): JSX.Element {
  const word = isPaused.value ? "paused" : status.value;
  const stale = status.value === "no connection" && answeredAt.value > 0;
  return <span class={`live live-${word.replaceAll(" ", "-")}`} role="status"><span aria-hidden="true">●</span> {word}{stale ? <span class="as-of">, as of {clock(new Date(answeredAt.value).toISOString())}</span> : null}</span>;
}

function Menu({ org }: { org: string }): JSX.Element {
  const { screen } = route.value;
  const waiting = needs.value;
  const item = (to: string, icon: string, text: string, screens: string[], badge = 0): JSX.Element => (
    <a href={to} aria-current={screens.includes(screen) ? "page" : undefined}><span aria-hidden="true">{icon}</span>{text}{badge ? <b class="badge wait">{badge}<span class="hidden"> wait for a person</span></b> : null}</a>
  );
  return (
    <nav class="menu" aria-label="Screens">
      {item(href(org), "▣", "Switchboard", ["switchboard"])}
      {item(href(org, "tasks"), "≡", "Tasks", ["tasks", "task"])}
      {item(href(org, "inbox"), "✉", "Inbox", ["inbox"], waiting)}
      {item(href(org, "agents"), "◉", "Agents", ["agents", "agent", "lanes"])}
      {item(href(org, "triggers"), "⚡", "Triggers", ["triggers"])}
      {item(href(org, "spend"), "¤", "Spend", ["spend"])}
      {isAdmin.value ? item(href(org, "channels"), "⌁", "Channels", ["channels", "channel"]) : null}
      {item(href(org, "system"), "♥", "System", ["system"])}
      <a class="wall-link" href={`${href(org)}?wall=1`}><span aria-hidden="true">▭</span>Wall</a>
      <small class="soft clock">{clock(new Date(now.value).toISOString())}{isUtc.value ? " UTC" : ""}</small>
    </nav>
  );
}

function Help({ org }: { org: string }): JSX.Element {
  return (
    <Dialog label="Keys" isOpen={isHelpOpen.value} onClose={() => (isHelpOpen.value = false)}>
      <h2>Keys</h2>
      <dl class="keys">{HELP.map(([key, what]) => <><dt><kbd>{key}</kbd></dt><dd>{what}</dd></>)}</dl>
      <label class="check"><input type="checkbox" checked={hasLetters.value} onChange={(event) => setLetters(event.currentTarget.checked)} /> Single letters are keys</label>
      <form method="dialog" class="inline">
        <button type="submit" class="primary">Close</button>
        {isOperator.value ? <button type="submit" onClick={() => { showFirstSteps(); go(href(org)); }}>Show the first steps</button> : null}
      </form>
    </Dialog>
  );
}

/** A screen that throws fails alone. */
class Boundary extends Component<{ children: ComponentChildren }, { fault: string | null }> {
  override state: { fault: string | null } = { fault: null };
  static override getDerivedStateFromError(error: unknown): { fault: string } {
    return { fault: error instanceof Error ? error.message : String(error) };
  }
  override render(): ComponentChildren {
    if (this.state.fault === null) return this.props.children;
    return <div class="notice bad" role="alert"><strong>This screen has a fault: {this.state.fault}</strong><p>The others still work. Reload to try it again.</p></div>;
  }
}
