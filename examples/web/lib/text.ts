/** Returns a text that Postgres and JSON can hold: without NUL, and with U+FFFD for halves of surrogate pairs. */
export const cleanText = (text: string): string => text.replace(/\0/g, "").replace(/\p{Surrogate}/gu, "\uFFFD");
