// Which entries of a list a person means by a few letters.

/** How well letters fit a text: the lower, the better; `null` if they are not in it in this order. */
function fit(letters: string, text: string): number | null {
  const lower = text.toLowerCase();
  const whole = lower.indexOf(letters);
  if (whole >= 0) return whole === 0 ? 0 : 1 + whole / 1000;
  let at = -1;
  let gaps = 0;
  for (const letter of letters) {
    const next = lower.indexOf(letter, at + 1);
    if (next < 0) return null;
    gaps += next - at - 1;
    at = next;
  }
  return 10 + gaps;
}

/** The items whose text has the letters, the best first; all in their order if there are none. */
export function match<T>(typed: string, items: readonly T[], textOf: (item: T) => string): T[] {
  const letters = typed.trim().toLowerCase();
  if (!letters) return [...items];
  const fits = items.flatMap((item, order) => {
    const how = fit(letters, textOf(item));
    return how === null ? [] : [{ item, how, order }];
  });
  return fits.sort((a, b) => a.how - b.how || a.order - b.order).map(({ item }) => item);
}
