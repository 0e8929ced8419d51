// The same last line as the tests of examples/web.
export { default } from "../../../../examples/web/tests/browser/harness/summary.ts";
