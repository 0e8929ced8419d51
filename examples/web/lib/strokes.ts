// Strokes of the whiteboard: points, encoding, and the assembly of a stroke that is being drawn. Pure.
import { bytesFromHex, bytesToHex } from "./bytea.ts";

/** The board's width and height in its own units. */
export const BOARD = 4096;
/** Maximum points of a stroke. A longer one continues as a new stroke; a longer one of another person is truncated. */
export const POINTS_MAX = 20_000;
/** Maximum points of one message. */
export const CHUNK_MAX = 2000;

export interface Style {
  color: string;
  /** Width in board units. */
  size: number;
}

/** Returns a valid style: any member of the board may send any JSON. */
export function styleOf(value: unknown): Style {
  const { color, size } = (value ?? {}) as Record<string, unknown>;
  return {
    color: typeof color === "string" && /^#[0-9a-f]{6}$/i.test(color) ? color.toLowerCase() : "#808080",
    size: typeof size === "number" && Number.isFinite(size) ? Math.min(200, Math.max(1, size)) : 8,
  };
}

/** Returns a list of x, y and pressure, with points outside of the board moved to its edge; undefined if a value is not a number. */
export function pointsOf(value: unknown): number[] | undefined {
  if (!Array.isArray(value) || value.length % 3 !== 0 || value.length > CHUNK_MAX * 3) return undefined;
  if (!value.every((number) => typeof number === "number" && Number.isFinite(number))) return undefined;
  return value.map((number: number, i) => clamp(number, i));
}

/** Returns a member of a point as it is stored: a float32 within the board. */
export const clamp = (number: number, i: number): number => Math.fround(i % 3 === 2 ? Math.min(1, Math.max(0, number)) : Math.min(BOARD, Math.max(0, number)));

type XY = [x: number, y: number];

/** Returns true if a stroke comes within `reach` of the line from `a` to `b`. */
export function touches(points: readonly number[], reach: number, a: XY, b: XY): boolean {
  let last: XY | undefined;
  for (let i = 0; i + 1 < points.length; i += 3) {
    const point: XY = [points[i] ?? 0, points[i + 1] ?? 0];
    if (between(last ?? point, point, a, b) <= reach) return true;
    last = point;
  }
  return false;
}

/** Returns the distance of two lines, each given by its ends. */
function between(a: XY, b: XY, c: XY, d: XY): number {
  if (side(a, b, c) * side(a, b, d) < 0 && side(c, d, a) * side(c, d, b) < 0) return 0;
  return Math.min(away(a, c, d), away(b, c, d), away(c, a, b), away(d, a, b));
}

/** Returns a positive number if `p` is left of the line from `a` to `b`, a negative one if it is right. */
const side = (a: XY, b: XY, p: XY): number => (b[0] - a[0]) * (p[1] - a[1]) - (b[1] - a[1]) * (p[0] - a[0]);

/** Returns the distance of a point from the line from `a` to `b`. */
function away(p: XY, a: XY, b: XY): number {
  const [dx, dy] = [b[0] - a[0], b[1] - a[1]];
  const along = ((p[0] - a[0]) * dx + (p[1] - a[1]) * dy) / (dx * dx + dy * dy || 1);
  const at = Math.min(1, Math.max(0, along));
  return Math.hypot(p[0] - a[0] - at * dx, p[1] - a[1] - at * dy);
}

/** Returns points as Postgres reads a bytea of little-endian float32. */
export function toHex(points: readonly number[]): string {
  const bytes = new Uint8Array(points.length * 4);
  const view = new DataView(bytes.buffer);
  points.forEach((number, i) => view.setFloat32(i * 4, number, true));
  return bytesToHex(bytes);
}

/** Reads the points of a bytea; undefined for null, for invalid text and for no points. */
export function fromHex(text: unknown): number[] | undefined {
  const bytes = bytesFromHex(text);
  if (!bytes?.length || bytes.length % 12 !== 0) return undefined;
  const view = new DataView(bytes.buffer);
  return Array.from({ length: bytes.length / 4 }, (_, i) => {
    const number = view.getFloat32(i * 4, true);
    return Number.isFinite(number) ? clamp(number, i) : 0;
  });
}

/** Another person's stroke while it is drawn: pieces may be lost, duplicated or early. */
export class LiveStroke {
  readonly points: number[] = [];
  /** Total number of points, known from its end. */
  total: number | undefined;

  constructor(
    readonly id: string,
    readonly author: string,
    readonly style: Style,
    public heardAt: number,
  ) {}

  /** Adds points from index `from`; returns the first missing index, or undefined. */
  add(from: number, points: readonly number[]): number | undefined {
    const have = this.points.length / 3;
    if (from > have) return have;
    // Duplicate points are skipped, new ones are added up to the limit.
    this.points.push(...points.slice((have - from) * 3));
    this.points.length = Math.min(this.points.length, POINTS_MAX * 3);
    return this.lacking();
  }

  /** Returns the first missing index, if the total is known and points are missing. */
  lacking(): number | undefined {
    const have = this.points.length / 3;
    return this.total !== undefined && have < Math.min(this.total, POINTS_MAX) ? have : undefined;
  }
}
