// The guide's test utilities: wait for events instead of sleeping. Every wait starts to listen before it returns, has a
// limit, and reports the expected event and the received ones.
import type { Change, Room } from "./room.ts";

/** A limit for a slow machine: a wait ends with its event. */
const WITHIN_MS = 30_000;

export interface WaitOptions {
  withinMs?: number;
}

/** The expected event did not arrive in time. */
export class WaitedInVain extends Error {}

export const RealtimeTestUtils = {
  /** Opens a room and resolves when it is live: `subscribe()` itself returns no promise. */
  async joined(room: Room, { withinMs = WITHIN_MS }: WaitOptions = {}): Promise<Room> {
    const live = room.whenLive();
    if (room.status === "connecting") void room.open();
    await limit(live, withinMs, () => `${room.topic} to be live; it is ${room.status} ${room.detail}`);
    return room;
  },

  /** Resolves with the payload of the next broadcast of `event` that `matches`. Call it before the other side sends. */
  waitForBroadcast<T = Record<string, unknown>>(
    room: Room,
    event: string,
    matches: (payload: T) => boolean = () => true,
    { withinMs = WITHIN_MS }: WaitOptions = {},
  ): Promise<T> {
    const heard: string[] = [];
    let off = (): void => undefined;
    const found = new Promise<T>((resolve) => {
      off = room.on("broadcast", (message) => {
        heard.push(message.event);
        if (message.event === event && matches(message.payload as T)) resolve(message.payload as T);
      });
    });
    return limit(found, withinMs, () => `broadcast "${event}" on ${room.topic}; heard ${heard.join(", ") || "nothing"}`).finally(off);
  },

  /** Resolves with the next row change that `matches`. */
  waitForChange(room: Room, matches: (change: Change) => boolean, { withinMs = WITHIN_MS }: WaitOptions = {}): Promise<Change> {
    const heard: string[] = [];
    let off = (): void => undefined;
    const found = new Promise<Change>((resolve) => {
      off = room.on("change", (change) => {
        heard.push(`${change.type} ${change.table}`);
        if (matches(change)) resolve(change);
      });
    });
    return limit(found, withinMs, () => `a row change on ${room.topic}; heard ${heard.join(", ") || "nothing"}`).finally(off);
  },

  /** Resolves when `holds` returns true; it is evaluated again after every event of the room. */
  waitUntil(room: Room, what: string, holds: () => boolean, { withinMs = WITHIN_MS }: WaitOptions = {}): Promise<void> {
    if (holds()) return Promise.resolve();
    const offs: (() => void)[] = [];
    const found = new Promise<void>((resolve) => {
      const look = (): void => {
        if (holds()) resolve();
      };
      offs.push(room.on("broadcast", look), room.on("change", look), room.on("presence", look), room.on("status", look));
    });
    return limit(found, withinMs, () => what).finally(() => offs.forEach((off) => off()));
  },
};

async function limit<T>(promise: Promise<T>, ms: number, what: () => string): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new WaitedInVain(`waited ${ms} ms for ${what()}`)), ms);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}
