// The events of the task whose page is open. A digest comes four times a second at most, and tells 60 tasks; a request
// that waits for the next event of this one task has its answer a moment after the commit, however busy the org is.
import { effect, signal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { awaitEvent } from "./api.ts";
import { isPaused } from "./live.ts";

/** After a failure or a refusal the digests are enough for so long. */
const RETRY_MS = 5_000;

/** Rises with the events of the task whose page is open. */
export const eventCount = signal(0);

const isHidden = signal(document.hidden);
document.addEventListener("visibilitychange", () => (isHidden.value = document.hidden));

/**
 * Waits for the events of a task while its page is shown. A hidden or paused page waits for nothing: a browser has only
 * six connections to a host for all of its tabs. Neither does one whose task has ended.
 */
export function useEvents(id: string, isWanted: boolean): void {
  useEffect(() => {
    if (!isWanted) return;
    return effect(() => {
      if (isHidden.value || isPaused.value) return;
      const abort = new AbortController();
      void follow(id, abort.signal);
      return () => abort.abort();
    });
  }, [id, isWanted]);
}

async function follow(id: string, abort: AbortSignal): Promise<void> {
  let after = 0;
  while (!abort.aborted) {
    try {
      const { events: found, next, final } = await awaitEvent(id, after, abort);
      if (abort.aborted) return;
      if (found.length) eventCount.value += 1;
      // The screen reads the task again, and asks no further unless it was requeued meanwhile.
      if (final) return;
      after = next;
    } catch {
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }
}
