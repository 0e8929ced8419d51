// A screen on a wall does not sleep while it shows the switchboard, where the browser allows that.

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
