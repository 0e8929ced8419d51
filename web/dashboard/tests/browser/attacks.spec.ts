// Attacks on a person who is signed in, in a real browser. Those on the routes alone are in tests/it/api/dashboard.rs.
import type { Page } from "@playwright/test";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { Stage, expect, isLive, test } from "./stage.ts";

const TOKEN = /ey[\w-]{8,}\.ey[\w-]{8,}\.[\w-]*/g;

/** The roles of the tokens in a text. */
function rolesIn(text: string): string[] {
  return (text.match(TOKEN) ?? []).map((token) => {
    const claims = JSON.parse(Buffer.from(token.split(".")[1] ?? "", "base64url").toString()) as { role?: string; use?: string };
    return claims.role ?? claims.use ?? "none";
  });
}

/** A site of somebody else: one page, which each test scripts. */
async function site(): Promise<{ port: number; close: () => void }> {
  const server = createServer((_, response) => {
    response.setHeader("content-type", "text/html");
    response.end("<!doctype html><title>Cats</title><body>");
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const close = (): void => {
    server.closeAllConnections();
    server.close();
  };
  return { port: (server.address() as AddressInfo).port, close };
}

test("a page of another site neither frames the dashboard nor acts in it", async ({ seats }) => {
  const { context, page, origin } = await seats.person("ana", {}, "admin");
  const task = await seats.request("support.reply", { run_at: "2099-01-01T00:00:00Z" });
  const evil = await site();
  const mallory = new URL(seats.link("mallory")).hash.replace("#code=", "");
  // Another port of this address is another origin of the same site, which gets the cookie; localhost is another site.
  for (const host of ["127.0.0.1", "localhost"]) {
    const other = await context.newPage();
    await other.goto(`http://${host}:${evil.port}/`);
    const seen = await other.evaluate(async ({ origin, mallory, task }) => {
      const ask = (path: string, method: string, kind: string, body?: string): Promise<string> =>
        fetch(origin + path, { method, credentials: "include", ...(body === undefined ? {} : { body, headers: { "content-type": kind } }) }).then((answer) => `read ${answer.status}`, () => "not read");
      const code = JSON.stringify({ code: mallory });
      const frame = document.createElement("iframe");
      frame.src = `${origin}/dashboard/`;
      const loaded = new Promise((resolve) => (frame.onload = resolve));
      document.body.append(frame);
      await loaded;
      const blank = document.createElement("iframe");
      blank.name = "target";
      document.body.append(blank);
      // A form sends without asking first; its body is JSON all the same.
      const form = document.createElement("form");
      Object.assign(form, { method: "post", enctype: "text/plain", target: "target", action: `${origin}/dashboard/session` });
      const field = document.createElement("input");
      Object.assign(field, { name: `{"code":"${mallory}","x":"`, value: '"}' });
      form.append(field);
      document.body.append(form);
      const sent = new Promise((resolve) => (blank.onload = resolve));
      form.submit();
      await sent;
      return Promise.all([
        ask("/dashboard/session", "GET", ""),
        ask("/dashboard/session/token", "POST", "application/json", "{}"),
        ask("/dashboard/session/token", "POST", "text/plain", "{}"),
        ask("/dashboard/session", "POST", "application/json", code),
        ask("/dashboard/session", "POST", "text/plain", code),
        ask("/dashboard/session?everywhere=true", "DELETE", ""),
        // `/v1` answers every origin, but none that sends cookies, which it does not know.
        ask(`/v1/tasks/${task}/cancel`, "POST", "text/plain", "{}"),
      ]);
    }, { origin, mallory, task });
    expect(seen, host).toEqual(Array<string>(7).fill("not read"));
    for (const frame of other.frames().slice(1)) expect(await frame.locator("#app").count(), "nothing of the dashboard is in a frame").toBe(0);
    // A link to the dashboard is followed, and signs nobody in or out.
    await other.goto(`${origin}/dashboard/demo/tasks`);
    await isLive(other);
    await other.close();
  }
  evil.close();
  await page.reload();
  await isLive(page);
  await expect(page.getByText("ana (admin)")).toBeVisible();
  expect((await seats.api<{ state: string }>(`/v1/tasks/${task}`)).state).toBe("scheduled");
  await seats.service(`/v1/tasks/${task}/cancel`, {});
});

test("no token of the service is in a page, and none but the anon key in an address, a log or a store", async ({ seats }) => {
  const { page, origin, context } = await seats.person("ana", {}, "admin");
  const addresses: string[] = [];
  const texts: string[] = [];
  const reading: Promise<unknown>[] = [];
  page.on("request", (request) => {
    addresses.push(request.url());
    texts.push(JSON.stringify(request.headers()), request.postData() ?? "");
  });
  page.on("response", (response) => reading.push(response.text().then((text) => texts.push(text), () => undefined)));
  page.on("websocket", (socket) => {
    addresses.push(socket.url());
    socket.on("framesent", ({ payload }) => texts.push(String(payload)));
    socket.on("framereceived", ({ payload }) => texts.push(String(payload)));
  });
  for (const path of ["", "/tasks", "/inbox", "/agents", "/agents/expert", "/lanes", "/triggers", "/spend", "/channels", "/channels/convoke:demo", "/system"]) {
    await page.goto(`${origin}/dashboard/demo${path}`);
    await isLive(page);
  }
  await page.getByText(/settings, with their defaults/).click();
  await page.getByRole("row", { name: /^auth.jwt_secret/ }).waitFor();
  const shown = await page.content();
  const stored = JSON.stringify([await context.storageState({ indexedDB: true }), await page.evaluate(() => [{ ...localStorage }, { ...sessionStorage }, document.cookie])]);
  await page.goto("about:blank");
  await Promise.all(reading);
  expect(new Set(rolesIn(texts.join("\n"))), "what the page sends and is sent").toEqual(new Set(["authenticated", "anon"]));
  expect(new Set(rolesIn(addresses.join("\n")))).toEqual(new Set(["anon"]));
  expect(rolesIn(shown)).toEqual([]);
  expect(rolesIn(stored)).toEqual([]);
  expect([shown, stored, ...addresses, ...texts].some((text) => text.includes(seats.daemon.secret())), "the secret itself").toBe(false);
  // `up` prints a link for the person at the terminal, and a program with the anon key.
  const log = seats.daemon.log().split("\n").filter((line) => !line.includes("/dashboard/#code="));
  expect(log.length).toBeGreaterThan(0);
  expect(rolesIn(log.join("\n")).filter((role) => role !== "anon")).toEqual([]);
});

const SCRIPT = `<img src=x onerror="document.title='attacked'"><b class="attack">bold</b>`;
const QUOTED = JSON.stringify(JSON.stringify(SCRIPT));

/** It describes itself, offers, reports, asks and fails with markup. */
const HOSTILE = `
id = "hostile"
org = "demo"
description = ${JSON.stringify(SCRIPT)}
capabilities = ["hostile"]

[run]
kind = "command"
argv = ["/bin/sh", "-c", '''
script=$1
printf '{"progress": 0.5, "activity": %s}\\n' "$script" >&2
if test -n "$CONVOKE_ANSWERS"; then echo "$script" >&2; exit 3; fi
printf '{"question": %s, "for": "input", "checkpoint": %s}\\n' "$script" "$script" >&2
''', "sh", ${QUOTED}]

[offer]
by = "command"
argv = ["/bin/sh", "-c", '''printf '{"offer": {"cost": 1, "eta_ms": 1, "confidence": 0.5, "note": %s}}' "$1"''', "sh", ${QUOTED}]
`;

test("a script in what agents and requesters write is text on every screen", async ({ browser }) => {
  const stage = await Stage.with(browser, { "hostile.toml": HOSTILE });
  try {
    const request = { requires: ["hostile"], input: { text: SCRIPT, [SCRIPT]: 1 }, policy: { attempts_max: 1 } };
    const [asked, failed] = [await stage.request(SCRIPT, request), await stage.request(SCRIPT, request)];
    await stage.reaches(failed, "waiting");
    await stage.service(`/v1/tasks/${failed}/answer`, { answer: SCRIPT });
    await stage.reaches(failed, "failed");
    await stage.reaches(asked, "waiting");
    const canceled = await stage.request(SCRIPT, { ...request, run_at: "2099-01-01T00:00:00Z" });
    await stage.service(`/v1/tasks/${canceled}/cancel`, { reason: SCRIPT });

    const { page, origin } = await stage.person(SCRIPT, { userAgent: SCRIPT }, "admin");
    const clean = async (where: string): Promise<void> => {
      expect(await page.locator("img, b.attack").count(), where).toBe(0);
      expect(await page.title(), where).not.toBe("attacked");
    };
    const seen = async (path: string, ready: string | RegExp = "<img src=x", act?: (page: Page) => Promise<void>): Promise<void> => {
      await page.goto(`${origin}/dashboard/demo${path}`);
      await isLive(page);
      await act?.(page);
      await expect(page.locator("main").getByText(ready).first(), path).toBeVisible();
      await clean(path);
    };
    const showEvents = async (page: Page): Promise<void> => {
      const details = page.getByRole("button", { name: /Details of/ });
      await details.first().waitFor();
      for (const event of await details.all()) await event.click();
    };
    await seen("");
    await seen("/tasks");
    await seen(`/tasks/${asked}`);
    await seen(`/tasks/${failed}`);
    await seen(`/tasks/${failed}`, "<img src=x", (page) => page.getByRole("button", { name: "Show as table" }).first().click());
    await seen(`/tasks/${failed}/timeline`, "<img src=x", (page) => page.getByRole("button", { name: "Show as table" }).click());
    await seen(`/tasks/${failed}/events`, "onerror", showEvents);
    await seen(`/tasks/${failed}/data`, "onerror");
    await seen(`/tasks/${canceled}/events`, "onerror", showEvents);
    await seen("/inbox");
    await seen("/agents");
    await seen("/agents/hostile");
    await seen("/lanes?minutes=60", "<img src=x", (page) => page.getByRole("button", { name: "Show as table" }).click());
    await seen("/spend?days=1&by=kind");
    await seen("/channels/convoke:demo");
    await seen("/system");
    await page.keyboard.press("Control+k");
    await page.keyboard.type("hostile");
    await page.getByRole("option", { name: "hostile agent" }).waitFor();
    await clean("palette");
    expect(stage.errors, "nothing even tried: the policy of the page has nothing to refuse").toEqual([]);
  } finally {
    await stage.close();
  }
});
