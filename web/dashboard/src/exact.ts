// JSON as it is stored: numbers that a double would round stay what they were.

export class ExactNumber {
  constructor(readonly source: string) {}
}

type Reviver = (this: unknown, key: string, value: unknown, context?: { source?: string }) => unknown;

/** Parses JSON; a number that a double cannot hold becomes an `ExactNumber`. */
export function parseExact(text: string): unknown {
  const revive: Reviver = (_, value, context) => {
    if (typeof value !== "number" || context?.source === undefined) return value;
    return Number.isInteger(value) && !Number.isSafeInteger(value) ? new ExactNumber(context.source) : value;
  };
  return JSON.parse(text, revive as Parameters<typeof JSON.parse>[1]);
}

/** JSON with two spaces a level. */
export function pretty(value: unknown, indent = ""): string {
  if (value instanceof ExactNumber) return value.source;
  if (value === undefined) return "null";
  if (typeof value !== "object" || value === null) return JSON.stringify(value);
  const inner = `${indent}  `;
  const items = Array.isArray(value) ? value.map((item) => pretty(item, inner)) : Object.entries(value).map(([name, item]) => `${JSON.stringify(name)}: ${pretty(item, inner)}`);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  if (items.length === 0) return `${open}${close}`;
  return `${open}\n${items.map((item) => inner + item).join(",\n")}\n${indent}${close}`;
}
