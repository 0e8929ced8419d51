// The limits of a budget, as people type them.
const MICRODOLLARS = 1_000_000;

/** The limits in the fields, as the daemon takes them. An empty field changes nothing. */
export function budgetOf(fields: Record<string, string>): object {
  const number = (name: string, unit: number): number | undefined => {
    const text = fields[name]?.trim();
    if (!text) return undefined;
    const value = Number(text);
    if (!Number.isFinite(value) || value < 0) throw new Error(`“${text}” is not an amount: write digits like 0.05 or 20000`);
    return Math.round(value * unit);
  };
  const own = { microdollars: number("dollars", MICRODOLLARS), tokens: number("tokens", 1) };
  const tree = { microdollars: number("treeDollars", MICRODOLLARS), tokens: number("treeTokens", 1) };
  const isGiven = (amount: object): boolean => Object.values(amount).some((value) => value !== undefined);
  if (!isGiven(own) && !isGiven(tree)) throw new Error("Fill in at least one limit");
  return { ...own, ...(isGiven(tree) ? { tree } : {}) };
}
