/** Difference between the server's clock and ours above which the page shows a notice. */
export const SKEW_SHOWN_MS = 2000;

let offset: number | undefined;

/**
 * Measures how far the server's clock is ahead of ours, in milliseconds, from the `Date` of an answer (±1 s).
 * The page's clock orders nothing, because the database's time does. The result is only displayed.
 */
export async function measureSkew(url = "/config"): Promise<number> {
  const began = Date.now();
  const answer = await fetch(url, { method: "HEAD", cache: "no-store" });
  const date = Date.parse(answer.headers.get("date") ?? "");
  if (Number.isNaN(date)) return 0;
  const middle = (began + Date.now()) / 2;
  // `Date` is truncated to seconds: half a second is the average error.
  offset = Math.round(date + 500 - middle);
  return offset;
}

/** Returns a sentence if the clocks differ noticeably, else an empty text. */
export function skewText(ms: number): string {
  if (Math.abs(ms) <= SKEW_SHOWN_MS) return "";
  return `This device's clock is ${Math.round(Math.abs(ms) / 1000)} s ${ms > 0 ? "behind" : "ahead"}. Times shown are the server's.`;
}
