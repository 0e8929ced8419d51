// The form that requests a task.
import { useSignal } from "@preact/signals";
import type { JSX } from "preact";
import { requestTask } from "../api.ts";
import { Command } from "../dialog.tsx";
import { bodyOf } from "../request.ts";
import { go, href } from "../route.ts";

/** Over plain http to another machine there is no `crypto.randomUUID`. */
const newKey = (): string => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

export function RequestTask({ org, label = "Request a task…", kind: firstKind = "", input: firstInput = "" }: { org: string; label?: string; kind?: string; input?: string }): JSX.Element {
  const kind = useSignal(firstKind);
  const requires = useSignal("");
  const input = useSignal(firstInput);
  // One key for each task that is meant: a second try after a lost answer makes no second task.
  const key = useSignal(newKey());
  return (
    <Command label={label} title="Request a task" verb="Request the task" run={async () => {
      const made = await requestTask(bodyOf(kind.value, requires.value, input.value), key.value);
      key.value = newKey();
      if (made) go(href(org, "tasks", made.id));
    }}>
      <label>Kind<input required value={kind.value} spellcheck={false} autocomplete="off" placeholder="support.triage" onInput={(event) => (kind.value = event.currentTarget.value)} /></label>
      <label>Capabilities that the agent needs, if not the kind<input value={requires.value} spellcheck={false} autocomplete="off" placeholder={kind.value || "support.triage"} onInput={(event) => (requires.value = event.currentTarget.value)} /></label>
      <label>Input, as JSON<textarea rows={4} spellcheck={false} value={input.value} placeholder={'{"text": "hello"}'} onInput={(event) => (input.value = event.currentTarget.value)} /></label>
    </Command>
  );
}
