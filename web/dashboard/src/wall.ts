// A screen on a wall: which org it shows, and that it does not sleep, where the browser allows that.

const TURN_S = 30;
const TURN_S_MIN = 5;

/** The orgs that a wall shows in turn: those of the query, or the session's alone. */
export function orgsOf(query: URLSearchParams, own: string): readonly string[] {
  const named = (query.get("orgs") ?? "").split(",").map((org) => org.trim()).filter(Boolean);
  return named.length ? [...new Set(named)] : [own];
}

/** How long each org is shown, in milliseconds. */
export function turnOf(query: URLSearchParams): number {
  return Math.max(TURN_S_MIN, Number(query.get("every")) || TURN_S) * 1000;
}

/** Asks for an awake screen, again each time the page is shown, until the returned function is called. */
export function keepAwake(): () => void {
  let lock: WakeLockSentinel | undefined;
  let isOver = false;
  const ask = async (): Promise<void> => {
    // Absent over plain http to another machine, and refused while the battery is low: the screen then sleeps as it is set up.
    const given = document.hidden ? undefined : await navigator.wakeLock?.request("screen").catch(() => undefined);
    if (isOver) void given?.release();
    else lock = given;
  };
  const shown = (): void => void ask();
  document.addEventListener("visibilitychange", shown);
  void ask();
  return () => {
    isOver = true;
    document.removeEventListener("visibilitychange", shown);
    void lock?.release();
  };
}
