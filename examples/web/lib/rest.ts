/** Result of a write, by the caller's next decision: done, retry, or report. */
export type Outcome<T> =
  | { kind: "done"; data: T }
  | { kind: "retry"; message: string }
  | { kind: "duplicate"; message: string }
  | { kind: "refused"; message: string };

/** The members of a supabase-js answer that matter here. supabase-js does not throw: `error` must be checked. */
export interface RestAnswer<T> {
  data: T | null;
  error: { code?: string; message: string } | null;
  status: number;
}

/** Classifies an answer. Status 0 is a request without an answer: the write may have been executed. */
export function outcome<T>(answer: RestAnswer<T>): Outcome<T> {
  const { data, error, status } = answer;
  if (!error) return { kind: "done", data: data as T };
  if (error.code === "23505") return { kind: "duplicate", message: error.message };
  // 401: the token expired; the retry uses a new one.
  if (status === 0 || status === 401 || status === 408 || status === 429 || status >= 500)
    return { kind: "retry", message: error.message };
  if (error.code === "42501") return { kind: "refused", message: "You are not permitted to do this." };
  return { kind: "refused", message: error.message };
}

/** Returns the data of a read; throws its error. */
export function rows<T>(answer: RestAnswer<T>): T {
  if (answer.error) throw new Error(answer.error.message, { cause: answer });
  return answer.data as T;
}
