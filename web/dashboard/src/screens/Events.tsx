// The event log of a task: read once, then only what came after.
import { useSignal } from "@preact/signals";
import type { JSX } from "preact";
import { useMemo, useRef } from "preact/hooks";
import { readEvents } from "../api.ts";
import { pretty } from "../exact.ts";
import { clock } from "../format.ts";
import { eventCount } from "../focus.ts";
import { concernsTask } from "../live.ts";
import { useRead } from "../read.ts";
import { query, setQuery } from "../route.ts";
import { seesData } from "../session.ts";
import type { TaskEvent } from "../types.ts";
import { AgentLink, At, Copy, Empty, Trouble } from "../ui.tsx";
import { words } from "../words.ts";

/** Reports that repeat; hidden at first. */
const NOISE = new Set(["progress", "nudged", "heartbeat"]);
/** Pages that one reading asks for: 10,000 events. */
const PAGES_MAX = 10;

export function Events({ org, id }: { org: string; id: string }): JSX.Element {
  const log = useRef<TaskEvent[]>([]);
  useMemo(() => (log.current = []), [id]);
  const { data, error } = useRead(`events ${id}`, async (abort) => {
    for (let page = 0; page < PAGES_MAX; page++) {
      const { events } = await readEvents(id, log.current.at(-1)?.seq ?? 0, abort);
      if (!events.length) break;
      log.current = [...log.current, ...events];
    }
    return log.current;
  }, concernsTask(id), 50, eventCount).value;
  const all = query.value.get("progress") === "shown";
  if (!data) return error ? <Trouble problem={error} /> : <p class="boot" role="status">Loading…</p>;
  const shown = all ? data : data.filter((event) => !NOISE.has(event.type));
  const curl = `curl -H "Authorization: Bearer $TOKEN" ${location.origin}/v1/tasks/${id}/events`;
  return (
    <>
      {error ? <Trouble problem={error} /> : null}
      <div class="list-head">
        <span class="soft" role="status">{data.length} {data.length === 1 ? "event" : "events"}{shown.length < data.length ? `, ${data.length - shown.length} of progress hidden` : ""}</span>
        <label class="check"><input type="checkbox" checked={all} onChange={() => setQuery({ progress: all ? "" : "shown" }, { replace: true })} /> Show progress</label>
        <Copy text={curl}>Copy as curl</Copy>
      </div>
      {shown.length ? <ol class="events">{shown.map((event) => <Row key={event.seq} org={org} event={event} />)}</ol> : <Empty title="No events" />}
    </>
  );
}

function Row({ org, event }: { org: string; event: TaskEvent }): JSX.Element {
  const isOpen = useSignal(false);
  return (
    <li>
      <div class="event">
        <button type="button" class="quiet small" aria-expanded={isOpen.value} aria-label={`Details of ${event.type} at ${clock(event.at, true)}`} onClick={() => (isOpen.value = !isOpen.value)}>{isOpen.value ? "▾" : "▸"}</button>
        <At at={event.at} millis />
        <b>{words(event.type)}</b>
        {event.agent_id ? <AgentLink org={org} id={event.agent_id} /> : null}
        {event.epoch ? <span class="soft">epoch {event.epoch}</span> : null}
        <span class="preview soft">{brief(event.body)}</span>
      </div>
      {isOpen.value ? (seesData.value ? <pre tabIndex={0}>{pretty(event.body)}</pre> : <p class="soft">What an event says is shown to operators.</p>) : null}
    </li>
  );
}

/** The members of a body that fit a line. */
function brief(body: unknown): string {
  if (typeof body !== "object" || body === null) return "";
  const short = Object.entries(body).filter(([name, value]) => !name.endsWith("_id") && (typeof value === "number" || (typeof value === "string" && value.length < 60)));
  return short.slice(0, 5).map(([name, value]) => `${name}: ${value}`).join(" · ");
}
