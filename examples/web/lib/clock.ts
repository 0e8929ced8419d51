/** Difference between the server's clock and ours above which the page shows a notice. */
export const SKEW_SHOWN_MS = 2000;

/**
 * Measures how far the server's clock is ahead of ours at least, in milliseconds; 0 if the clocks may be equal.
 * The page's clock orders nothing, because the database's time does. The result is only displayed.
 */
export async function measureSkew(url = "/config"): Promise<number> {
  const began = Date.now();
  const answer = await fetch(url, { method: "HEAD", cache: "no-store" });
  const date = Date.parse(answer.headers.get("date") ?? "");
  return Number.isNaN(date) ? 0 : certainSkew(date, began, Date.now());
}

/**
 * Returns the least difference that explains a `Date`, which is truncated to seconds, of an answer to a request that began
 * and ended at our times. A slow answer proves less: it is no skew that the answer took seconds.
 */
export function certainSkew(date: number, began: number, ended: number): number {
  if (date > ended) return date - ended;
  const latest = date + 1000;
  return latest < began ? latest - began : 0;
}

/** Returns a sentence if the clocks differ noticeably, else an empty text. */
export function skewText(ms: number): string {
  if (Math.abs(ms) <= SKEW_SHOWN_MS) return "";
  return `This device's clock is ${Math.round(Math.abs(ms) / 1000)} s ${ms > 0 ? "behind" : "ahead"}. Times shown are the server's.`;
}
