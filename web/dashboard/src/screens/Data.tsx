// Input, result and error as they are stored.
import { useSignal } from "@preact/signals";
import type { JSX } from "preact";
import { pretty } from "../exact.ts";
import { seesData } from "../session.ts";
import type { Task, Why } from "../types.ts";
import { Copy, Panel } from "../ui.tsx";

const LINES_FOLDED = 20;
/** Longer texts are not put into the page. */
const SHOWN_CHARS_MAX = 200_000;

export function Data({ why: { task } }: { why: Why }): JSX.Element {
  return (
    <div class="data">
      {seesData.value ? <Written task={task} /> : <p class="notice">Inputs, results and errors are shown to operators: the daemon does not send them to viewers (<code>dashboard.data</code>).</p>}
      {task.budget ? <Json title="Budget" value={task.budget} /> : null}
      <Panel title="Request">
        <dl>
          <dt>Id</dt><dd><code>{task.id}</code></dd>
          <dt>Requires</dt><dd>{task.requires.join(", ") || "nothing"}</dd>
          <dt>Priority</dt><dd>{task.priority}</dd>
          <dt>Deadline</dt><dd>{task.deadline_at ?? "none"}</dd>
          <dt>Root</dt><dd><code>{task.root_id}</code></dd>
          {task.depends_on.length ? <><dt>Depends on</dt><dd>{task.depends_on.map((id) => <code key={id}>{id} </code>)}</dd></> : null}
        </dl>
      </Panel>
    </div>
  );
}

/** What the requester and the agents wrote. */
function Written({ task }: { task: Task }): JSX.Element {
  return (
    <>
      <Json title="Input" value={task.input} />
      <Json title="Result" value={task.result} absent={task.state === "completed" ? "The result is null." : `No result: the task is ${task.state}.`} />
      {task.error === null ? null : <Json title="Error" value={task.error} />}
    </>
  );
}

function Json({ title, value, absent }: { title: string; value: unknown; absent?: string }): JSX.Element {
  const isUnfolded = useSignal(false);
  const text = pretty(value);
  const lines = text.split("\n");
  const isLong = lines.length > LINES_FOLDED;
  const shown = isLong && !isUnfolded.value ? lines.slice(0, LINES_FOLDED).join("\n") : text;
  return (
    <Panel title={title} aside={value === null ? undefined : <Copy text={text}>Copy</Copy>}>
      {value === null && absent ? <p class="soft">{absent}</p> : <pre tabIndex={0}>{shown.slice(0, SHOWN_CHARS_MAX)}</pre>}
      {shown.length > SHOWN_CHARS_MAX ? <p class="soft">The first {SHOWN_CHARS_MAX} characters are shown. Copy has all.</p> : null}
      {isLong ? <button type="button" class="quiet small" onClick={() => (isUnfolded.value = !isUnfolded.value)}>{isUnfolded.value ? "Fold" : `Show all ${lines.length} lines`}</button> : null}
    </Panel>
  );
}
