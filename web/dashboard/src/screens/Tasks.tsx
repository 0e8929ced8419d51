// The list of tasks: filters are in the address, rows follow live and never move under the pointer.
import { signal, useSignal } from "@preact/signals";
import type { JSX } from "preact";
import { useEffect, useId, useLayoutEffect, useMemo, useRef } from "preact/hooks";
import { readLines, readLinesById } from "../api.ts";
import type { Column } from "../columns.ts";
import { type Filter, fromQuery, timeOf, toParams, toggled, typedTime } from "../filter.ts";
import { isUtc, now } from "../format.ts";
import { GROUPS, type Group, type GroupBy, groupByOf, groupOf, inGroups } from "../groups.ts";
import { again, isPaused } from "../live.ts";
import { useRead } from "../read.ts";
import { go, href, query, setQuery } from "../route.ts";
import { isOperator } from "../session.ts";
import { type Store, current, isNew, patch, put } from "../store.ts";
import { FINAL, type Line, type Lines, STATES } from "../types.ts";
import { removeView, saveView, viewsOf } from "../views.ts";
import { Bulk, selected, toggle } from "./Bulk.tsx";
import { ColumnChoice, SHOWN, columns } from "./Columns.tsx";
import { Durations } from "./Durations.tsx";
import { Inspector } from "./Inspector.tsx";
import { RequestTask } from "./RequestTask.tsx";
import { AgentLink, Empty, Progress, State, TaskLink, Trouble } from "../ui.tsx";

const PAGE = 50;
/** Columns of the list beside the inspector, which shows the others. */
const BESIDE = 3;
const known = signal<Store>(new Map());
/** The ids of the list that was shown last, for `[` and `]` on a task. */
export const shownIds = signal<string[]>([]);

interface Page {
  ids: string[];
  scannedTo: string | null;
  more: boolean;
}

const asPage = ({ tasks, partial }: Lines): Page => ({ ids: tasks.map((task) => task.id), scannedTo: partial?.scanned_to ?? null, more: tasks.length === PAGE });

export function Tasks({ org }: { org: string }): JSX.Element {
  const filter = fromQuery(query.value);
  const before = query.value.get("before") ?? "";
  const key = JSON.stringify([org, filter, before]);
  const newer = useSignal(0);
  const isHeld = useRef(false);
  const shown = useRef<Page | null>(null);
  const unknown = useRef(new Set<string>());
  useMemo(() => {
    shown.current = null;
    unknown.current.clear();
    newer.value = 0;
    selected.value = new Set();
  }, [key]);

  const reading = useRead<Page>(key, async (abort) => {
    const page = shown.current;
    // The pointer is on the list, or it is an older page: rows change in place, and new ones are only counted.
    if (page && (isHeld.current || before)) {
      known.value = put(known.value, page.ids.length ? await readLinesById(page.ids, abort) : []);
      newer.value = unknown.current.size;
      return page;
    }
    const lines = await readLines({ ...toParams(filter, now.value), ...(before ? { before } : {}), limit: PAGE }, abort);
    known.value = put(known.value, lines.tasks);
    unknown.current.clear();
    newer.value = 0;
    return (shown.current = asPage(lines));
  }, ({ tasks, more }) => {
    for (const { id } of tasks) if (!shown.current?.ids.includes(id)) unknown.current.add(id);
    const isAny = more || tasks.some((task) => isNew(known.value, task));
    known.value = patch(known.value, tasks);
    return isAny;
  });

  const { data, error } = reading.value;
  const by = groupByOf(query.value.get("group"));
  // Under the pointer a row stays in its group, whatever becomes of its task.
  const names = useRef(new Map<string, string>());
  useMemo(() => names.current.clear(), [key, by]);
  const nameOf = (line: Line): string => {
    const name = (isHeld.current && names.current.get(line.id)) || (by ? groupOf(line, by) : "");
    names.current.set(line.id, name);
    return name;
  };
  const groups = data ? inGroups(current(known.value, data.ids), nameOf) : [];
  const lines = groups.flatMap(({ lines }) => lines);
  useEffect(() => {
    shownIds.value = lines.map((line) => line.id);
  }, [lines.map((line) => line.id).join()]);
  const hasDurations = query.value.get("durations") === "1";
  const inspected = query.value.get("inspect") ?? "";
  const inspect = (id: string): void => {
    if (id !== inspected) setQuery({ inspect: id }, { replace: true });
  };
  const toggleInspector = (): void => {
    if (inspected) return inspect("");
    // The row that the keys move, which is the first one before they do. With the focus there they move the inspector, too.
    const row = document.querySelector<HTMLElement>("tr[tabindex='0']");
    inspect(row?.dataset.row ?? "");
    row?.focus();
  };
  const showNew = (): void => {
    isHeld.current = false;
    shown.current = null;
    again();
  };

  return (
    <>
      <h1>Tasks</h1>
      <Views org={org} />
      <FilterBar filter={filter} />
      {error ? <Trouble problem={error} /> : null}
      <div class="list-head">
        <span role="status" class="soft">
          {data ? `${lines.length}${data.more ? "+" : ""} ${lines.length === 1 ? "task" : "tasks"}${before ? ", older page" : ""}${isPaused.value ? ", paused" : ""}` : "Loading…"}
        </span>
        {newer.value && !before && !filter.until ? <button type="button" class="small primary" onClick={showNew}>{newer.value} changed or new ↑</button> : null}
        {before ? <a href={newest()}>Newest</a> : null}
        <span class="grow" />
        <button type="button" class="quiet small" aria-pressed={hasDurations} onClick={() => setQuery({ durations: hasDurations ? "" : "1" }, { replace: true })}>Durations</button>
        <button type="button" class="quiet small" title="Inspector (i)" data-letter="i" aria-pressed={inspected !== ""} disabled={!lines.length && !inspected} onClick={toggleInspector}>Inspector</button>
        <GroupChoice by={by} />
        <ColumnChoice />
        <Bulk filter={filter} lines={lines} />
        <RequestTask org={org} />
      </div>
      {hasDurations ? <Durations org={org} filter={filter} /> : null}
      {data && !lines.length ? <Nothing filter={filter} page={data} /> : null}
      <div class={inspected ? "inspected" : ""}>
        {lines.length ? (
          <div onPointerEnter={() => (isHeld.current = true)} onPointerLeave={() => (isHeld.current = false)}>
            <Table org={org} groups={by ? groups : [{ name: "", lines }]} by={by} columns={inspected ? columns.value.slice(0, BESIDE) : columns.value} onRow={(id) => inspected && inspect(id)} />
          </div>
        ) : null}
        {inspected ? <Inspector org={org} id={inspected} onClose={() => inspect("")} /> : null}
      </div>
      {data ? <Further page={data} last={lines.at(-1)} /> : null}
    </>
  );
}

/** Saved filters, and the form that saves this one. */
function Views({ org }: { org: string }): JSX.Element {
  const name = useSignal("");
  const saved = viewsOf(org);
  const params = new URLSearchParams(query.value);
  params.delete("before");
  const here = params.toString();
  const current = saved.find((view) => view.query === here);
  const save = (event: Event): void => {
    event.preventDefault();
    if (!name.value.trim()) return;
    saveView(org, { name: name.value.trim(), query: here });
    name.value = "";
  };
  return (
    <div class="views">
      {saved.map((view) => <a key={view.name} class="chip" aria-current={view === current ? "page" : undefined} href={`${href(org, "tasks")}?${view.query}`}>{view.name}</a>)}
      {current ? <button type="button" class="quiet small" onClick={() => removeView(org, current.name)}>Forget “{current.name}”</button> : null}
      {here && !current ? (
        <form class="inline" onSubmit={save}>
          <label class="hidden" for="view-name">Name of this filter</label>
          <input id="view-name" value={name.value} maxLength={60} autocomplete="off" placeholder="Name of this filter" onInput={(event) => (name.value = event.currentTarget.value)} />
          <button type="submit" class="small">Save view</button>
        </form>
      ) : null}
    </div>
  );
}

function newest(): string {
  const params = new URLSearchParams(query.value);
  params.delete("before");
  return `${location.pathname}?${params}`;
}

/** A field whose text is set when the address changes, and not each time the list is read: it may be typed meanwhile. */
function FilterField({ name, label, value, hint, onChange, extra }: { name: string; label: string; value: string; hint: string; onChange: (event: Event) => void; extra: object }): JSX.Element {
  const input = useRef<HTMLInputElement>(null);
  useLayoutEffect(() => {
    if (input.current) input.current.value = value;
  }, [value]);
  return <label>{label}<input ref={input} name={name} placeholder={hint} spellcheck={false} autocomplete="off" onChange={onChange} {...extra} /></label>;
}

function FilterBar({ filter }: { filter: Filter }): JSX.Element {
  const states = new Set((filter.state ?? "").split(","));
  const set = (field: string) => (event: Event) => setQuery({ [field]: (event.currentTarget as HTMLInputElement).value.trim(), before: "" }, { replace: true });
  const setTime = (field: string) => (event: Event) => setQuery({ [field]: typedTime((event.currentTarget as HTMLInputElement).value, now.value, isUtc.value), before: "" }, { replace: true });
  const badTime = (["since", "until"] as const).find((name) => filter[name] !== undefined && timeOf(filter[name] ?? "", 0) === null);
  const field = (name: keyof Filter, label: string, hint: string, extra: object = {}, change = set(name)): JSX.Element => (
    <FilterField name={name} label={label} value={filter[name] ?? ""} hint={hint} onChange={change} extra={extra} />
  );
  const time = (name: "since" | "until", label: string, hint: string): JSX.Element => field(name, label, hint, badTime === name ? { "aria-invalid": true, "aria-describedby": "bad-time" } : {}, setTime(name));
  return (
    <form class="filters" role="search" aria-label="Filter of tasks" onSubmit={(event) => event.preventDefault()}>
      <fieldset>
        <legend class="hidden">States</legend>
        {STATES.map((state) => (
          <button key={state} type="button" class={`chip state-${state}`} aria-pressed={states.has(state)} onClick={() => setQuery({ state: toggled(filter.state, state), before: "" })}>{state}</button>
        ))}
      </fieldset>
      {field("kind", "Kind", "support.*,-support.spam", { "data-focus": "filter" })}
      {field("agent", "Agent", "keyword,classifier")}
      {field("requester", "Requester", "sql:app")}
      {time("since", "Since", "1h, 7d or 14:03")}
      {time("until", "Until", "14:04")}
      {Object.keys(filter).length ? <button type="button" onClick={() => setQuery({ state: "", kind: "", agent: "", requester: "", since: "", until: "", before: "" })}>Clear</button> : null}
      {badTime ? <p id="bad-time" class="bad">“{filter[badTime]}” is not a time: write 30m, 1h, 7d, 14:03, or 2026-11-29 14:03. It does not filter.</p> : null}
    </form>
  );
}

function Nothing({ filter, page }: { filter: Filter; page: Page }): JSX.Element {
  const parts = Object.entries(filter);
  return (
    <Empty title={parts.length ? "No task matches the filter" : "There are no tasks"}>
      {page.scannedTo ? <p>The newest 50,000 tasks were looked at. Older ones may match.</p> : null}
      {parts.length ? (
        <>
          <p>Without one of its parts:</p>
          <ul class="inline">{parts.map(([name, value]) => <li key={name}><button type="button" onClick={() => setQuery({ [name]: "", before: "" })}>{name}: {value} ✕</button></li>)}</ul>
        </>
      ) : <p>A task is requested over HTTP, by SQL, with <code>convoke task request</code>, or by a wake of an agent's file.</p>}
    </Empty>
  );
}

function Further({ page, last }: { page: Page; last: Line | undefined }): JSX.Element | null {
  const before = page.more ? last?.id : page.scannedTo;
  if (!before) return null;
  const params = new URLSearchParams(query.value);
  params.set("before", before);
  return (
    <p class="further">
      {page.more ? null : "The newest 50,000 tasks were looked at. "}
      <a class="button" href={`${location.pathname}?${params}`}>{page.more ? "Older tasks" : "Search further back"}</a>
    </p>
  );
}

function GroupChoice({ by }: { by: GroupBy | null }): JSX.Element {
  const id = useId();
  return (
    <span class="group-choice">
      <label for={id}>Group by</label>
      <select id={id} value={by ?? ""} onChange={(event) => setQuery({ group: event.currentTarget.value }, { replace: true })}>
        <option value="">nothing</option>
        {GROUPS.map((name) => <option key={name} value={name}>{name}</option>)}
      </select>
    </span>
  );
}

/** What the tasks of a group have in common. */
function GroupName({ org, by, name }: { org: string; by: GroupBy; name: string }): JSX.Element {
  if (by === "state") return <State state={name} />;
  if (by === "agent") return name ? <AgentLink org={org} id={name} /> : <>no agent</>;
  if (by === "tree") return <>tree of <TaskLink org={org} id={name} /></>;
  return <b>{name}</b>;
}

/** `onRow`: a row has got the focus. */
function Table({ org, groups, by, columns, onRow }: { org: string; groups: Group[]; by: GroupBy | null; columns: readonly Column[]; onRow: (id: string) => void }): JSX.Element {
  const lines = groups.flatMap(({ lines }) => lines);
  const at = useSignal(0);
  const body = useRef<HTMLTableSectionElement>(null);
  const move = (event: KeyboardEvent): void => {
    const step = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1 }[event.key];
    const line = lines[at.value];
    if (event.key.toLowerCase() === "x" && isOperator.value && line && !event.metaKey && !event.ctrlKey && !event.altKey) {
      toggle(lines.map(({ id }) => id), line.id, event.shiftKey);
      event.preventDefault();
      return;
    }
    if (event.key === "Enter" && line && (event.target as Element).tagName === "TR") return go(href(org, "tasks", line.id));
    if (step === undefined || event.metaKey || event.ctrlKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    at.value = Math.min(lines.length - 1, Math.max(0, at.value + step));
    body.current?.querySelectorAll<HTMLTableRowElement>("tr[data-row]")[at.value]?.focus();
  };
  // The row that has the focus stays, whatever else changes.
  const focused = lines[Math.min(at.value, lines.length - 1)]?.id;
  const row = (line: Line): JSX.Element => (
    <Row key={line.id} org={org} line={line} columns={columns} isCurrent={line.id === focused} ids={lines.map(({ id }) => id)} onFocus={() => {
      at.value = lines.findIndex(({ id }) => id === line.id);
      onRow(line.id);
    }} />
  );
  return (
    <div class="scroll">
      <table class="tasks">
        <caption class="hidden">Tasks, newest first. Arrows or j and k move, Enter opens.</caption>
        <thead>
          <tr>{isOperator.value ? <th><span class="hidden">Selected</span></th> : null}<th>State</th>{columns.map((column) => <th key={column} class={SHOWN[column].class === "number" ? "number" : ""}>{SHOWN[column].label}</th>)}</tr>
        </thead>
        <tbody ref={body} onKeyDown={move}>
          {groups.map(({ name, lines }) => [
            by ? <tr key={`group ${name}`} class="group"><th scope="rowgroup" colSpan={columns.length + (isOperator.value ? 2 : 1)}><GroupName org={org} by={by} name={name} /> <span class="soft">{lines.length}</span></th></tr> : null,
            ...lines.map(row),
          ])}
        </tbody>
      </table>
    </div>
  );
}

function Row({ org, line, columns, isCurrent, ids, onFocus }: { org: string; line: Line; columns: readonly Column[]; isCurrent: boolean; ids: string[]; onFocus: () => void }): JSX.Element {
  return (
    <tr tabIndex={isCurrent ? 0 : -1} data-row={line.id} data-state={line.state} onFocus={onFocus} aria-selected={isOperator.value ? selected.value.has(line.id) : undefined}>
      {isOperator.value ? <td class="select"><input type="checkbox" tabIndex={-1} aria-label={`Select ${line.kind} ${line.id}`} checked={selected.value.has(line.id)} onClick={(event) => toggle(ids, line.id, event.shiftKey)} /></td> : null}
      <td data-label="State"><State state={line.state} reason={line.state_reason} />{line.progress !== null && !FINAL.has(line.state) ? <Progress value={line.progress} label="Progress" /> : null}</td>
      {columns.map((column) => <td key={column} data-label={SHOWN[column].label} class={SHOWN[column].class ?? ""}>{SHOWN[column].cell(line, org)}</td>)}
    </tr>
  );
}
