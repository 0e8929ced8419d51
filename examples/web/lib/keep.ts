// Keeps updates that are not in the table yet in this browser, across a reload or a crash of the tab.
//
// localStorage instead of IndexedDB: a write is complete when the call returns, so a crash after a key press loses
// nothing. A browser gives about 5,000,000 characters to an origin, which is 2,500,000 bytes here. `save` reports a
// full or blocked storage.
import * as Y from "yjs";
import { bytesFromHex, bytesToHex } from "./bytea.ts";
import { store, stored, storedKeys } from "./storage.ts";

/** One key for each tab. A tab that starts takes over the keys of others; an update that is taken twice is harmless. */
export class Keep {
  /** Keys of other tabs, with the text that was taken over. */
  readonly #taken = new Map<string, string>();

  constructor(
    readonly prefix: string,
    readonly tab: string,
  ) {}

  /** Keeps the updates in place of the ones before. Returns false when the storage is full or refused. */
  save(updates: readonly Uint8Array[]): boolean {
    const kept = store(this.prefix + this.tab, updates.length ? bytesToHex(Y.mergeUpdates([...updates])) : undefined);
    if (!kept) return false;
    // Only after the save, so a crash in between loses nothing. A key that a live tab has written since stays.
    for (const [key, text] of this.#taken) if (stored(key) === text) store(key, undefined);
    this.#taken.clear();
    return true;
  }

  /** Returns the updates of other tabs. Their keys are removed by the next `save` that succeeds. */
  leftovers(): Uint8Array[] {
    return storedKeys(this.prefix).flatMap((key) => {
      const text = stored(key);
      if (key === this.prefix + this.tab || text === undefined) return [];
      this.#taken.set(key, text);
      const update = bytesFromHex(text);
      return update?.length ? [update] : [];
    });
  }
}
