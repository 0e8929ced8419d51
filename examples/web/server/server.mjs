// @ts-check
// The server of the pages: built files, sign-in, /rest/v1 (rest.mjs), and a pass-through of /realtime/v1 to the daemon,
// byte for byte. It is stateless: several instances can run side by side.
import { readdir, readFile } from "node:fs/promises";
import { createServer, request as httpRequest } from "node:http";
import { connect } from "node:net";
import { extname, join, relative, sep } from "node:path";
import { rest } from "./rest.mjs";

const TYPES = /** @type {Record<string, string>} */ ({
  ".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8",
  ".svg": "image/svg+xml", ".json": "application/json", ".png": "image/png", ".woff2": "font/woff2",
});
const SECURITY = {
  "content-security-policy":
    "default-src 'self'; connect-src 'self' ws: wss:; img-src 'self' data: blob:; media-src 'self' blob:; style-src 'self'; object-src 'none'; base-uri 'none'; frame-ancestors 'none'; form-action 'self'",
  "x-content-type-options": "nosniff",
  "referrer-policy": "no-referrer",
  "permissions-policy": "camera=(self), microphone=(self), display-capture=(self)",
};
/** CodeMirror creates style elements, and its binding style attributes: only that page allows them. */
const EDITOR_POLICY = SECURITY["content-security-policy"].replace("style-src 'self'", "style-src 'self' 'unsafe-inline'");
const SMALL_BODY_MAX = 4096;
/**
 * Time after which an idle connection is closed. The default of Node.js, 5 s, is shorter than a client keeps one: a request
 * that it sends in the moment of the close fails.
 */
const IDLE_MS = 75_000;

/**
 * Starts the server.
 * @param {{ pool: import("pg").Pool, secret: string, people: import("./people.mjs").People, daemon: URL,
 *           dist: string, host: string, port: number }} options
 * @returns {Promise<{ port: number, close: () => Promise<void> }>}
 */
export async function startServer({ pool, secret, people, daemon, dist, host, port }) {
  const pages = await readPages(dist);
  const server = createServer(async (request, response) => {
    try {
      await route(request, response);
    } catch (error) {
      console.error(`server: ${request.method} ${request.url?.split("?")[0]}: ${/** @type {Error} */ (error).message}`);
      if (response.headersSent) response.destroy();
      else sendJson(response, 500, { message: "the server cannot answer now" });
    }
  });

  /** @param {import("node:http").IncomingMessage} request @param {import("node:http").ServerResponse} response */
  async function route(request, response) {
    const url = new URL(request.url ?? "/", "http://localhost");
    const path = url.pathname;
    if (path.startsWith("/rest/v1/")) {
      const answer = await rest(pool, secret, request, url);
      // The rest of a refused body is read and dropped, so that the client gets the answer; then the connection closes.
      if (!request.complete) response.setHeader("connection", "close");
      request.resume();
      response.writeHead(answer.status, { ...answer.headers, "cache-control": "no-store" }).end(request.method === "HEAD" ? "" : answer.body);
    } else if (path.startsWith("/realtime/v1/")) {
      passThrough(request, response, daemon);
    } else if (request.method === "GET" && /^\/v1\/tasks\/[^/]+(\/why)?$/.test(path)) {
      // The only routes of the daemon's API that a page uses; the daemon checks the bearer in the header.
      passThrough(request, response, daemon);
    } else if (path === "/config") {
      sendJson(response, 200, { anonKey: people.anonKey(), ...(await people.list()) });
    } else if (path === "/session" || path === "/session/token") {
      await session(request, response, path);
    } else {
      sendPage(request, response, pages, path);
    }
  }

  /** @param {import("node:http").IncomingMessage} request @param {import("node:http").ServerResponse} response @param {string} path */
  async function session(request, response, path) {
    if (path === "/session" && request.method === "DELETE") return reply(response, people.signOut());
    // A form of another site cannot send this type without asking first, and the cookie is SameSite=Strict.
    if (request.method !== "POST" || !String(request.headers["content-type"]).startsWith("application/json"))
      return sendJson(response, 405, { message: "POST with application/json" });
    const body = await smallJson(request);
    request.resume();
    if (!body) return sendJson(response, 400, { message: "the body is not a small JSON object" });
    reply(response, path === "/session" ? await people.signIn(body) : people.bearer(request, body));
  }

  server.keepAliveTimeout = IDLE_MS;
  // Node.js does not track upgraded sockets: without this set, `close` would wait for every open page.
  const upgraded = new Set();
  server.on("upgrade", (request, socket, head) => {
    upgraded.add(socket);
    socket.once("close", () => upgraded.delete(socket));
    upgrade(request, socket, head, daemon);
  });
  server.headersTimeout = 30_000;
  await new Promise((resolve, reject) => server.once("error", reject).listen(port, host, () => resolve(undefined)));
  const address = /** @type {import("node:net").AddressInfo} */ (server.address());
  return {
    port: address.port,
    close: () => new Promise((resolve) => {
      server.close(() => resolve());
      server.closeAllConnections();
      for (const socket of upgraded) socket.destroy();
    }),
  };
}

/** @param {import("node:http").ServerResponse} response @param {import("./people.mjs").Reply} answer */
function reply(response, answer) {
  if (answer.cookie) response.setHeader("set-cookie", answer.cookie);
  if (answer.body === undefined) response.writeHead(answer.status).end();
  else sendJson(response, answer.status, answer.body);
}

/** @param {import("node:http").ServerResponse} response @param {number} status @param {unknown} body */
function sendJson(response, status, body) {
  response.writeHead(status, { "content-type": "application/json; charset=utf-8", "cache-control": "no-store", ...SECURITY });
  response.end(JSON.stringify(body));
}

/** @param {import("node:http").IncomingMessage} request @returns {Promise<Record<string, unknown> | undefined>} */
async function smallJson(request) {
  let text = "";
  for await (const chunk of request.iterator({ destroyOnReturn: false })) {
    text += chunk;
    if (text.length > SMALL_BODY_MAX) return undefined;
  }
  try {
    const value = JSON.parse(text || "{}");
    return value && typeof value === "object" && !Array.isArray(value) ? value : undefined;
  } catch {
    return undefined;
  }
}

/** @param {import("node:http").IncomingMessage} request @param {import("node:http").ServerResponse} response @param {URL} daemon */
function passThrough(request, response, daemon) {
  // The cookie is this server's own and is no business of the daemon.
  const { cookie: _, ...headers } = request.headers;
  const to = httpRequest(
    // A connection of its own: an idle one may be closed by the daemon in this moment.
    { host: daemon.hostname, port: daemon.port, path: request.url, method: request.method, headers: { ...headers, host: daemon.host }, agent: false },
    (answer) => {
      response.writeHead(answer.statusCode ?? 502, answer.headers);
      answer.pipe(response);
    },
  );
  to.on("error", () => (response.headersSent ? response.destroy() : sendJson(response, 502, { message: "the daemon does not answer" })));
  response.on("close", () => to.destroy());
  request.pipe(to);
}

/**
 * Passes a websocket through: the handshake as it came, then bytes both ways. Each side's end ends the other.
 * @param {import("node:http").IncomingMessage} request @param {import("node:stream").Duplex} socket @param {Buffer} head @param {URL} daemon
 */
function upgrade(request, socket, head, daemon) {
  socket.on("error", () => socket.destroy());
  if (!request.url?.startsWith("/realtime/v1/")) return socket.end("HTTP/1.1 404 Not Found\r\nconnection: close\r\n\r\n");
  const to = connect(Number(daemon.port), daemon.hostname, () => {
    const lines = [`${request.method} ${request.url} HTTP/1.1`];
    for (let i = 0; i < request.rawHeaders.length; i += 2) {
      const name = request.rawHeaders[i] ?? "";
      // The cookie is this server's own and is no business of the daemon.
      if (name.toLowerCase() !== "cookie") lines.push(`${name}: ${request.rawHeaders[i + 1] ?? ""}`);
    }
    to.write(`${lines.join("\r\n")}\r\n\r\n`);
    to.write(head);
    to.pipe(socket).pipe(to);
  });
  to.setNoDelay(true);
  /** @type {import("node:net").Socket} */ (socket).setNoDelay?.(true);
  to.on("error", () => {
    if (!to.bytesRead) socket.end("HTTP/1.1 502 Bad Gateway\r\nconnection: close\r\n\r\n");
    else socket.destroy();
  });
  to.on("close", () => socket.destroy());
  socket.on("close", () => to.destroy());
}

/** @typedef {{ body: Buffer, headers: Record<string, string | number> }} PageFile */

/**
 * Reads the built pages, so that a later build does not change what this server serves.
 * @param {string} dist @returns {Promise<Map<string, PageFile>>} by path, like `/chat/index.html`
 */
async function readPages(dist) {
  const entries = await readdir(dist, { recursive: true, withFileTypes: true });
  const files = entries.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name));
  return new Map(await Promise.all(files.map(async (file) => /** @type {[string, PageFile]} */ (await readPage(file, `/${relative(dist, file).split(sep).join("/")}`)))));
}

/** @param {string} file @param {string} path @returns {Promise<[string, PageFile]>} */
async function readPage(file, path) {
  const body = await readFile(file);
  const headers = {
    "content-type": TYPES[extname(path)] ?? "application/octet-stream",
    "content-length": body.length,
    "cache-control": path.startsWith("/assets/") ? "public, max-age=31536000, immutable" : "no-cache",
    ...SECURITY,
    ...(path.startsWith("/editor/") ? { "content-security-policy": EDITOR_POLICY } : {}),
  };
  return [path, { body, headers }];
}

/**
 * @param {import("node:http").IncomingMessage} request @param {import("node:http").ServerResponse} response
 * @param {Map<string, PageFile>} pages @param {string} path
 */
function sendPage(request, response, pages, path) {
  if (request.method !== "GET" && request.method !== "HEAD") return sendJson(response, 405, { message: "GET only" });
  const found = pages.get(path.endsWith("/") ? `${path}index.html` : path);
  if (found) return void response.writeHead(200, found.headers).end(request.method === "HEAD" ? undefined : found.body);
  // Relative addresses inside a page need the slash.
  if (pages.has(`${path}/index.html`)) return void response.writeHead(308, { location: `${path}/` }).end();
  sendJson(response, 404, { message: "not found" });
}
