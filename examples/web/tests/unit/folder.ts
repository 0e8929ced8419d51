import { chmodSync, mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/**
 * Creates a data folder for a daemon. Every user may enter it: a daemon of root keeps the server's files elsewhere if
 * the server's user cannot, and they would remain there.
 */
export function dataFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), "convoke-web-"));
  chmodSync(folder, 0o755);
  return folder;
}
