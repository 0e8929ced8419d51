import type { FullResult, Reporter, TestCase, TestResult } from "@playwright/test/reporter";

/** Prints `N passed, N failed` on a line of its own, for whatever reads the output. */
export default class Summary implements Reporter {
  readonly #last = new Map<string, boolean>();
  #skipped = 0;
  readonly #flaky = new Set<string>();

  onTestEnd(test: TestCase, result: TestResult): void {
    // An interrupted test counts as one that did not run.
    if (result.status === "skipped" || result.status === "interrupted") this.#skipped += 1;
    else this.#last.set(test.id, test.ok());
    if (test.outcome() === "flaky") this.#flaky.add(test.title);
  }

  onEnd(_: FullResult): void {
    const passed = [...this.#last.values()].filter(Boolean).length;
    for (const title of this.#flaky) console.log(`flaky: ${title}`);
    console.log(`${passed} passed, ${this.#last.size - passed} failed${this.#skipped ? `, ${this.#skipped} skipped` : ""}`);
  }
}
