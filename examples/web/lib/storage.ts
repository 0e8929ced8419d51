// Access to localStorage, which can be blocked (reading the property then throws) or full.

function storage(): Storage | undefined {
  try {
    return localStorage;
  } catch {
    return undefined;
  }
}

/** Returns a stored text; undefined if it is absent or the storage is blocked. */
export function stored(key: string): string | undefined {
  return storage()?.getItem(key) ?? undefined;
}

/** Stores a text, or removes the key for undefined. Returns false if the storage is full or blocked. */
export function store(key: string, text: string | undefined): boolean {
  try {
    const found = storage();
    if (text === undefined) found?.removeItem(key);
    else found?.setItem(key, text);
    return found !== undefined || text === undefined;
  } catch {
    return false;
  }
}

/** Returns the stored keys that begin with `prefix`. */
export const storedKeys = (prefix: string): string[] => Object.keys(storage() ?? {}).filter((key) => key.startsWith(prefix));
