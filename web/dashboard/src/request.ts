// The bodies of requests, from what was typed.

/** The body of a request, with the input as it was typed. */
export function bodyOf(kind: string, requires: string, input: string): string {
  const text = checked("input", input.trim() || "null");
  const needs = (requires.trim() || kind.trim()).split(",").map((need) => need.trim()).filter(Boolean);
  return `{"kind":${JSON.stringify(kind.trim())},"requires":${JSON.stringify(needs)},"input":${text}}`;
}

/** The body of the trial of a row. */
export function trialOf(event: string, row: string): string {
  return `{"event":${JSON.stringify(event)},"row":${checked("row", row.trim() || "{}")}}`;
}

/** A text that is JSON. It stays text: a number beyond a double must not change on its way. */
function checked(what: string, text: string): string {
  try {
    JSON.parse(text);
    return text;
  } catch (error) {
    throw new Error(`The ${what} is no JSON: ${error instanceof Error ? error.message : String(error)}`);
  }
}
