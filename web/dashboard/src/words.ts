// Names of the daemon.

/** A name like `attempts_exhausted`, as words. */
export function words(name: string): string {
  return name.replaceAll("_", " ");
}
