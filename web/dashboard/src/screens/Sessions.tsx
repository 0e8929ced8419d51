// Who is signed in to the dashboard, and where; each session can be ended.
import { useSignal } from "@preact/signals";
import type { JSX } from "preact";
import { Dialog, useCommand } from "../dialog.tsx";
import { browserOf } from "../browser.ts";
import { useRead } from "../read.ts";
import { endSession, isAdmin, readSessions } from "../session.ts";
import type { SessionLine } from "../types.ts";
import { Ago, Panel, Trouble } from "../ui.tsx";

export function Sessions(): JSX.Element {
  const { data, error } = useRead("sessions", readSessions, () => false, 1000).value;
  return (
    <Panel title={isAdmin.value ? "Sessions of this org" : "Your sessions"}>
      {error ? <Trouble problem={error} /> : null}
      {data ? (
        <div class="scroll" tabIndex={0} role="region" aria-label="Sessions"><table>
          <caption class="hidden">Sessions</caption>
          <thead><tr><th>Person</th><th>Role</th><th>Browser</th><th>Signed in</th><th>Last used</th><th><span class="hidden">Action</span></th></tr></thead>
          <tbody>{data.map((line) => <Row key={line.id} line={line} />)}</tbody>
        </table></div>
      ) : error ? null : <p class="soft" role="status">Loading…</p>}
    </Panel>
  );
}

function Row({ line }: { line: SessionLine }): JSX.Element {
  return (
    <tr data-session={line.id}>
      <th scope="row">{line.user}{line.is_own ? <span class="soft"> (this one)</span> : null}</th>
      <td>{line.role}</td>
      <td title={line.browser ?? ""}>{browserOf(line.browser)}</td>
      <td><Ago at={line.created_at} /></td>
      <td><Ago at={line.seen_at} /></td>
      <td>{line.is_own ? null : <End line={line} />}</td>
    </tr>
  );
}

/** A viewer may end sessions too: they are no commands about tasks. */
function End({ line }: { line: SessionLine }): JSX.Element {
  const isOpen = useSignal(false);
  const { fault, isBusy, act } = useCommand(() => endSession(line.id), () => (isOpen.value = false));
  const title = `End the session of ${line.user}?`;
  const submit = (event: Event): void => {
    event.preventDefault();
    void act();
  };
  return (
    <>
      <button type="button" class="small" onClick={() => (isOpen.value = true)}>End…<span class="hidden"> session of {line.user}, {browserOf(line.browser)}</span></button>
      <Dialog label={title} isOpen={isOpen.value} onClose={() => (isOpen.value = false)}>
        <form class="command" onSubmit={submit}>
          <h2>{title}</h2>
          <p>{browserOf(line.browser)}. A token that it was given before ends within ten minutes.</p>
          {fault.value ? <p class="bad" role="alert">{fault.value}</p> : null}
          <div class="inline"><button type="submit" class="danger" disabled={isBusy.value}>End the session</button><button type="button" onClick={() => (isOpen.value = false)}>Leave it</button></div>
        </form>
      </Dialog>
    </>
  );
}
