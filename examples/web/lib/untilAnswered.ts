import { backoffMs } from "./backoff.ts";

/**
 * Retries a read until it succeeds. Use it for data that a page needs to start: a page that is opened while the server,
 * the database or the network is down then starts when it is back, without a reload.
 * @param failed is called after each failure; if it throws, the retries end with that error
 */
export async function untilAnswered<T>(read: () => Promise<T>, failed: (error: Error) => void): Promise<T> {
  for (let tries = 0; ; tries++) {
    try {
      return await read();
    } catch (error) {
      failed(error as Error);
      await new Promise((resolve) => setTimeout(resolve, backoffMs(tries)));
    }
  }
}
