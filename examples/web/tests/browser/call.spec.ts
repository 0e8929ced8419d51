import type { Page } from "@playwright/test";
import { expect, fresh, isLive, poll, SIZE, test } from "./harness/stage.ts";
import { has } from "./harness/wait.ts";

const MEDIA = { permissions: ["camera", "microphone"], viewport: { width: 700, height: 500 } };
declare global {
  interface Window {
    firstOffersRolledBack: number;
  }
}

/** A call whose pairs have a minute to connect before they begin anew: only the first try counts here, and it may be slow. */
const call = (room: string): string => `/call/?room=${room}&answer=${ANSWER_MS}`;
const ANSWER_MS = 60_000;

const connected = (page: Page, n: number): Promise<void> => has(page, "data-connected", String(n));
const atFirstTry = (page: Page): Promise<void> => has(page, "data-tries", "0");
const join = (page: Page): Promise<void> => page.getByRole("button", { name: "Join" }).click();
const frames = (page: Page): Promise<number[]> => page.evaluate(() => window.framesDecoded());

/** Every one of `n` remote pictures goes on. */
async function flows(page: Page, n: number): Promise<void> {
  await has(page, "data-peers", String(n));
  const before = await frames(page);
  await poll(async () => (await frames(page)).filter((count, i) => count > (before[i] ?? 0)).length).toBe(n);
}

test("two simultaneous calls make exactly one connected pair", async ({ seats, stage }) => {
  const room = fresh("glare");
  await stage.topic(`webrtc:${room}`);
  const [ana, ben] = [await seats.seat("ana", MEDIA), await seats.seat("ben", MEDIA)];
  const [a, b] = [await ana.open(call(room)), await ben.open(call(room))];
  for (let i = 0; i < 5 * SIZE; i++) {
    await Promise.all([join(a), join(b)]);
    for (const page of [a, b]) {
      await connected(page, 1);
      await has(page, "data-peers", "1");
      await has(page, "data-stable", "true");
      await atFirstTry(page);
    }
    if (i === 0) for (const page of [a, b]) await flows(page, 1);
    await Promise.all([a, b].map((page) => page.getByRole("button", { name: "Leave" }).click()));
    for (const page of [a, b]) await has(page, "data-peers", "0");
  }
});

test("both share their screens at once, a third joins, and a crashed tab disappears", async ({ seats, stage }) => {
  const room = fresh("three");
  await stage.topic(`webrtc:${room}`);
  const [ana, ben, cleo] = [await seats.seat("ana", MEDIA), await seats.seat("ben", MEDIA), await seats.seat("cleo", MEDIA)];
  const [a, b] = [await ana.open(call(room)), await ben.open(call(room))];
  // A headless browser has no screen to choose: a canvas stands in for it.
  const canvas = (page: Page): Promise<void> =>
    page.evaluate(() => {
      navigator.mediaDevices.getDisplayMedia = async () => {
        const element = document.createElement("canvas");
        const context = element.getContext("2d")!;
        setInterval(() => {
          context.fillStyle = `hsl(${Date.now() % 360} 80% 50%)`;
          context.fillRect(0, 0, 300, 150);
        }, 50);
        return element.captureStream(10);
      };
    });
  await Promise.all([canvas(a), canvas(b)]);
  await Promise.all([join(a), join(b)]);
  for (const page of [a, b]) await connected(page, 1);
  await Promise.all([a, b].map((page) => page.getByRole("button", { name: "Share screen" }).click()));
  for (const page of [a, b]) {
    await has(page, "data-tiles", "4");
    await has(page, "data-stable", "true");
  }
  const c = await cleo.open(call(room));
  await join(c);
  for (const page of [a, b, c]) {
    await connected(page, 2);
    await atFirstTry(page);
  }
  for (const page of [a, b, c]) await flows(page, 2);
  await c.getByLabel("Say to the call").fill("hello both");
  await c.getByRole("button", { name: "Say", exact: true }).click();
  for (const page of [a, b]) await expect(page.locator(".log")).toContainText("Cleo hello both");
  // The process of the tab ends: no leave, no last word.
  const devtools = await ben.context.newCDPSession(b);
  void devtools.send("Page.crash").catch(() => undefined);
  for (const page of [a, c]) await has(page, "data-peers", "1");
});

test("three simultaneous joins connect at the first try, and no first offer is rolled back", async ({ seats, stage }) => {
  const room = fresh("at-once");
  await stage.topic(`webrtc:${room}`);
  const pages: Page[] = [];
  for (const person of ["ana", "ben", "cleo"]) {
    const seat = await seats.seat(person, MEDIA);
    // Chromium may gather no candidates for the answer after it rolled back the first offer of a connection.
    await seat.context.addInitScript(() => {
      const set = RTCPeerConnection.prototype.setRemoteDescription;
      window.firstOffersRolledBack = 0;
      RTCPeerConnection.prototype.setRemoteDescription = function (description) {
        if (description.type === "offer" && this.signalingState === "have-local-offer" && !this.remoteDescription) window.firstOffersRolledBack += 1;
        return Reflect.apply(set, this, [description]) as Promise<void>;
      };
    });
    pages.push(await seat.open(call(room)));
  }
  for (let i = 0; i < 2 * SIZE; i++) {
    await Promise.all(pages.map(join));
    for (const page of pages) {
      await connected(page, 2);
      await atFirstTry(page);
      expect(await page.evaluate(() => window.firstOffersRolledBack)).toBe(0);
    }
    await Promise.all(pages.map((page) => page.getByRole("button", { name: "Leave" }).click()));
    for (const page of pages) await has(page, "data-peers", "0");
  }
});

test("media continues while the daemon is down, and renegotiation works afterwards", async ({ seats, stage }) => {
  const room = fresh("killed");
  await stage.topic(`webrtc:${room}`);
  const [ana, ben] = [await seats.seat("ana", MEDIA), await seats.seat("ben", MEDIA)];
  const [a, b] = [await ana.open(call(room)), await ben.open(call(room))];
  await Promise.all([join(a), join(b)]);
  for (const page of [a, b]) await connected(page, 1);
  await stage.daemon.kill9();
  await has(a, "data-live", "down");
  await flows(a, 1);
  await flows(b, 1);
  // Shared while the channel is down: the offer waits for it.
  await a.evaluate(() => {
    navigator.mediaDevices.getDisplayMedia = async () => document.createElement("canvas").captureStream(5);
  });
  await a.getByRole("button", { name: "Share screen" }).click();
  await stage.daemon.start();
  for (const page of [a, b]) await isLive(page);
  await has(b, "data-tiles", "3");
  for (const page of [a, b]) {
    await connected(page, 1);
    await has(page, "data-stable", "true");
  }
});

test("a second tab of a person has its own muted tile, and invalid signals are ignored", async ({ seats, stage }) => {
  const room = fresh("tabs");
  await stage.topic(`webrtc:${room}`);
  const ana = await seats.seat("ana", MEDIA);
  const [first, second] = [await ana.open(call(room)), await ana.open(call(room))];
  await join(first);
  await expect(second.locator(".lobby")).toContainText("Ana");
  await join(second);
  for (const page of [first, second]) await connected(page, 1);
  await expect(second.getByRole("button", { name: "Microphone" })).toHaveAttribute("aria-pressed", "false");
  await expect(first.getByRole("button", { name: "Microphone" })).toHaveAttribute("aria-pressed", "true");
  // Malformed messages on the channel: without a recipient, without a sender, of an unknown shape.
  for (const payload of [{}, { from: "x", to: "y", call: "z", seq: 1 }, { from: 1, to: 2 }, { description: { type: "offer", sdp: "v=0" } }])
    await stage.query("select realtime.send($1::jsonb, 'offer', $2, true)", [JSON.stringify(payload), `webrtc:${room}`]);
  await flows(first, 1);
  for (const page of [first, second]) await connected(page, 1);
});

test("a peer that never answers is reported, and the other pair stays connected", async ({ seats, stage }) => {
  const room = fresh("silent");
  await stage.topic(`webrtc:${room}`);
  const [ana, ben, cleo] = [await seats.seat("ana", MEDIA), await seats.seat("ben", MEDIA), await seats.seat("cleo", MEDIA)];
  for (const { context } of [ana, ben]) await context.clock.install();
  const [a, b, c] = [await ana.open(call(room)), await ben.open(call(room)), await cleo.open(call(room))];
  await Promise.all([join(a), join(b)]);
  for (const page of [a, b]) await connected(page, 1);
  // Cleo's browser is in the roster and never makes or takes an offer.
  await c.evaluate(() => {
    RTCPeerConnection.prototype.setLocalDescription = () => new Promise(() => undefined);
    RTCPeerConnection.prototype.setRemoteDescription = () => new Promise(() => undefined);
  });
  await join(c);
  for (const page of [a, b]) {
    await has(page, "data-peers", "2");
    // Each try has its time, and then the next one.
    const reported = page.locator(".notice.problem").filter({ hasText: "Cleo does not answer." });
    for (let tries = 1; !(await reported.count()); tries++) {
      expect(tries, "an end of the tries").toBeLessThan(20);
      await page.clock.fastForward(ANSWER_MS + 1000);
      await isLive(page);
    }
    await connected(page, 1);
  }
  await flows(a, 1);
});
