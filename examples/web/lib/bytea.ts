// bytea columns as PostgREST and row changes carry them: `\x` and hexadecimal, or hexadecimal alone.

/** Returns bytes as Postgres reads a bytea. */
export function bytesToHex(bytes: Uint8Array): string {
  const parts = new Array<string>(bytes.length + 1);
  parts[0] = "\\x";
  for (let i = 0; i < bytes.length; i++) parts[i + 1] = bytes[i]!.toString(16).padStart(2, "0");
  return parts.join("");
}

/** Reads a bytea; undefined for null and for invalid text. */
export function bytesFromHex(text: unknown): Uint8Array | undefined {
  if (typeof text !== "string") return undefined;
  const hex = text.startsWith("\\x") ? text.slice(2) : text;
  if (hex.length % 2 !== 0 || !/^[0-9a-f]*$/i.test(hex)) return undefined;
  const bytes = new Uint8Array(hex.length / 2);
  for (let i = 0; i < bytes.length; i++) bytes[i] = parseInt(hex.slice(i * 2, i * 2 + 2), 16);
  return bytes;
}
