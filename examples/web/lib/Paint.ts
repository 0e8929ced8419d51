/** Draws at most ten times a second, in an animation frame, never while the page is hidden, and at once when it is visible again. */
export class Paint {
  #dirty = false;
  #last = 0;
  #timer: ReturnType<typeof setTimeout> | undefined;
  /** Number of drawings. */
  draws = 0;

  constructor(
    readonly draw: () => void,
    readonly everyMs = 100,
  ) {
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden && this.#dirty) this.#paint();
    });
  }

  request(): void {
    this.#dirty = true;
    if (this.#timer !== undefined || document.hidden) return;
    const wait = Math.max(0, this.#last + this.everyMs - performance.now());
    this.#timer = setTimeout(() => requestAnimationFrame(() => this.#paint()), wait);
  }

  #paint(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    if (!this.#dirty || document.hidden) return;
    this.#dirty = false;
    this.#last = performance.now();
    this.draws += 1;
    this.draw();
  }
}
