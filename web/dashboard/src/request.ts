// The body of a request for a task, from what was typed.

/** The body of a request, with the input as it was typed. */
export function bodyOf(kind: string, requires: string, input: string): string {
  const text = input.trim() || "null";
  try {
    JSON.parse(text);
  } catch (error) {
    throw new Error(`The input is no JSON: ${error instanceof Error ? error.message : String(error)}`);
  }
  const needs = (requires.trim() || kind.trim()).split(",").map((need) => need.trim()).filter(Boolean);
  // The input stays text: a number beyond a double must not change on its way.
  return `{"kind":${JSON.stringify(kind.trim())},"requires":${JSON.stringify(needs)},"input":${text}}`;
}
