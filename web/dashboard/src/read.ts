// What a screen reads, again whenever it may have changed.
import { effect, type ReadonlySignal, signal, type Signal, untracked } from "@preact/signals";
import { useEffect, useMemo } from "preact/hooks";
import { type Digest, digest, generation, isPaused } from "./live.ts";
import { Problem } from "./session.ts";

export interface Reading<T> {
  data: T | null;
  error: Problem | null;
  /** Of what `data` was read; it stays while something else is read. */
  of: string;
}

/**
 * Reads `ask` for `key`: at once, after a gap, when `concerns` says so of a digest, and when `hint` changes. One request
 * at a time, at most one every `everyMs`, and half as many while digests have more changes than they list. Nothing while
 * the page is paused or hidden, except the first time.
 */
export function useRead<T>(key: string, ask: (abort: AbortSignal) => Promise<T>, concerns: (digest: Digest) => boolean, everyMs = 250, hint?: ReadonlySignal<unknown>): Signal<Reading<T>> {
  const reading = useMemo(() => signal<Reading<T>>({ data: null, error: null, of: "" }), []);
  useEffect(() => {
    const abort = new AbortController();
    let isAsking = false;
    let isWanted = false;
    let timer: ReturnType<typeof setTimeout> | undefined;
    let askedAt = Number.NEGATIVE_INFINITY;
    const isStill = (): boolean => untracked(() => isPaused.value && reading.value.of === key);
    const run = async (): Promise<void> => {
      timer = undefined;
      // The page was paused while the reading waited its turn; the resume asks again.
      if (isStill()) return;
      isAsking = true;
      isWanted = false;
      askedAt = performance.now();
      try {
        const data = await ask(abort.signal);
        if (!abort.signal.aborted && !isStill()) reading.value = { data, error: null, of: key };
      } catch (error) {
        if (abort.signal.aborted) return;
        const problem = error instanceof Problem ? error : new Problem(-1, "internal", String(error));
        const known = reading.value;
        reading.value = { data: known.of === key ? known.data : null, error: problem, of: key };
      } finally {
        isAsking = false;
        if (isWanted && !abort.signal.aborted) want();
      }
    };
    const want = (): void => {
      isWanted = true;
      if (isAsking || timer !== undefined) return;
      const pause = untracked(() => digest.value.more) ? 2 * everyMs : everyMs;
      timer = setTimeout(() => void run(), Math.max(0, askedAt + pause - performance.now()));
    };
    const ends = [
      effect(() => {
        generation.value;
        hint?.value;
        if (!isStill()) want();
      }),
      effect(() => {
        const told = digest.value;
        const isIdle = !told.tasks.length && !told.more && !told.agents;
        if (!isIdle && !document.hidden && !isStill() && untracked(() => concerns(told))) want();
      }),
    ];
    return () => {
      ends.forEach((end) => end());
      clearTimeout(timer);
      abort.abort();
    };
  }, [key]);
  return reading;
}
