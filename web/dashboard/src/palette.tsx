// The command palette: every screen, agent, saved view and setting by a few letters, and any task by its id.
import { signal, useSignal } from "@preact/signals";
import type { JSX } from "preact";
import { useEffect, useId } from "preact/hooks";
import { readAgents } from "./api.ts";
import { Dialog } from "./dialog.tsx";
import { isUtc } from "./format.ts";
import { isPaused, pause } from "./live.ts";
import { match } from "./match.ts";
import { go, href } from "./route.ts";
import { isAdmin } from "./session.ts";
import { nextTheme } from "./theme.ts";
import { viewsOf } from "./views.ts";

export const isPaletteOpen = signal(false);

export interface Entry {
  text: string;
  group: string;
  run: () => void;
}

const SHOWN = 12;
const ID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i;

export function setUtc(on: boolean): void {
  isUtc.value = on;
  localStorage.setItem("utc", String(on));
}

function entries(org: string, agents: readonly string[]): Entry[] {
  const to = (text: string, group: string, address: string): Entry => ({ text, group, run: () => go(address) });
  const tasks = href(org, "tasks");
  return [
    to("Switchboard", "screen", href(org)),
    to("Switchboard on a wall", "screen", `${href(org)}?wall=1`),
    to("Tasks", "screen", tasks),
    to("Inbox", "screen", href(org, "inbox")),
    to("Agents", "screen", href(org, "agents")),
    to("Lanes", "screen", href(org, "lanes")),
    to("Triggers", "screen", href(org, "triggers")),
    to("Spend", "screen", href(org, "spend")),
    ...(isAdmin.value ? [to("Channels", "screen", href(org, "channels"))] : []),
    to("System", "screen", href(org, "system")),
    to("Tasks that failed in the last hour", "list", `${tasks}?state=failed&since=1h`),
    to("Tasks that run", "list", `${tasks}?state=running,awarded`),
    to("Tasks without an agent", "list", `${tasks}?state=open`),
    ...viewsOf(org).map(({ name, query }) => to(name, "view", `${tasks}?${query}`)),
    ...agents.map((id) => to(id, "agent", href(org, "agents", id))),
    { text: isPaused.value ? "Resume" : "Pause", group: "setting", run: () => pause(!isPaused.value) },
    { text: isUtc.value ? "Local time" : "UTC", group: "setting", run: () => setUtc(!isUtc.value) },
    { text: "Next theme", group: "setting", run: nextTheme },
  ];
}

export function Palette({ org }: { org: string }): JSX.Element {
  return (
    <Dialog label="Go to" isOpen={isPaletteOpen.value} onClose={() => (isPaletteOpen.value = false)}>
      {isPaletteOpen.value ? <Search org={org} /> : null}
    </Dialog>
  );
}

function Search({ org }: { org: string }): JSX.Element {
  const text = useSignal("");
  const at = useSignal(0);
  const agents = useSignal<string[]>([]);
  const id = useId();
  useEffect(() => {
    const abort = new AbortController();
    // Without an answer the palette has everything but agents.
    void readAgents(abort.signal).then((list) => (agents.value = list.map((agent) => agent.id)), () => undefined);
    return () => abort.abort();
  }, []);
  const typed = text.value.trim();
  const task: Entry[] = ID.test(typed) ? [{ text: typed, group: "task", run: () => go(href(org, "tasks", typed)) }] : [];
  const shown = [...task, ...match(typed, entries(org, agents.value), ({ text }) => text)].slice(0, SHOWN);
  const chosen = Math.min(at.value, shown.length - 1);
  const open = (entry: Entry | undefined): void => {
    if (!entry) return;
    isPaletteOpen.value = false;
    entry.run();
  };
  const press = (event: KeyboardEvent): void => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (event.key === "Enter") open(shown[chosen]);
    else if (step !== undefined && shown.length) at.value = (chosen + step + shown.length) % shown.length;
    else return;
    event.preventDefault();
  };
  return (
    <div class="palette">
      <label for={`${id}-text`}>Screen, agent, view, or the id of a task</label>
      <input id={`${id}-text`} role="combobox" aria-expanded="true" aria-controls={`${id}-list`} aria-activedescendant={shown.length ? `${id}-${chosen}` : undefined} aria-autocomplete="list" autocomplete="off" spellcheck={false} value={text.value} onKeyDown={press} onInput={(event) => {
        text.value = event.currentTarget.value;
        at.value = 0;
      }} />
      <ul id={`${id}-list`} role="listbox" aria-label="Matches">
        {shown.map((entry, row) => (
          <li key={`${entry.group} ${entry.text}`} id={`${id}-${row}`} role="option" aria-selected={row === chosen} onClick={() => open(entry)}><span>{entry.text}</span><small>{entry.group}</small></li>
        ))}
      </ul>
      <p class="soft" role="status">{shown.length ? "" : "Nothing matches."}</p>
    </div>
  );
}
