// A supabase-js client on strings: one JSON command a line on stdin, one JSON event a line on stdout.
// usage: node client_process.mjs <package> <http url> <key> [vsn]
import { createInterface } from "node:readline";
import WebSocket from "ws";

const [name, url, key, vsn] = process.argv.slice(2);
const { createClient } = await import(name);
const say = (event) => process.stdout.write(JSON.stringify(event) + "\n");
// The old client takes these for the time that a join has, too: what is unanswered by then, it leaves.
const reconnectAfterMs = (tries) => [50, 1000][tries - 1] ?? 2000;
const realtime = { transport: WebSocket, reconnectAfterMs, ...(vsn ? { vsn } : {}),
  ...(process.env.CLIENT_ID ? { params: { client_id: process.env.CLIENT_ID } } : {}) };
const auth = { persistSession: false, autoRefreshToken: false };
const client = createClient(url, key, { realtime, auth });
const channels = new Map();

const wire = (payload) =>
  payload instanceof ArrayBuffer ? { bytes: Buffer.from(payload).toString("base64") } : { payload };
const unwire = ({ bytes, payload }) =>
  bytes === undefined ? payload : new Uint8Array(Buffer.from(bytes, "base64")).buffer;

const commands = {
  join({ topic, config, changes = [], event = "*" }) {
    const channel = client.channel(topic, { config });
    channels.set(topic, channel);
    channel.on("broadcast", { event }, (message) =>
      say({ event: "broadcast", topic, name: message.event, meta: message.meta, ...wire(message.payload) }));
    channel.on("presence", { event: "sync" }, () =>
      say({ event: "sync", topic, state: channel.presenceState() }));
    channel.on("system", {}, (message) => say({ event: "system", topic, message: message.message }));
    changes.forEach((binding, at) =>
      channel.on("postgres_changes", binding, ({ eventType: type, table, new: record, old, errors }) =>
        say({ event: "change", topic, at, type, table, record, old, errors })));
    channel.subscribe((status, error) => say({ event: "status", topic, status, error: error?.message }));
  },
  listen_to_changes({ topic, changes }) {
    const channel = client.channel(topic);
    channel.on("postgres_changes", changes, () => {});
    channel.on("system", {}, (message) => say({ event: "system", topic, message: message.message }));
    channel.subscribe((status, error) => say({ event: "status", topic, status, error: error?.message }));
  },
  watch({ topic, items }) {
    const channel = client.channel(topic);
    channels.set(topic, channel);
    for (const item of items) channel.on("postgres_changes", item, (change) => say({ event: "change", topic, change }));
    channel.on("system", {}, (message) => say({ event: "system", topic, message: message.message }));
    channel.subscribe((status, error) => say({ event: "status", topic, status, error: error?.message }));
  },
  async send({ topic, name, ...payload }) {
    const message = { type: "broadcast", event: name, payload: unwire(payload) };
    say({ event: "sent", result: await channels.get(topic).send(message) });
  },
  async http_send({ topic, name, ...payload }) {
    const channel = channels.get(topic) ?? client.channel(topic);
    say({ event: "sent", result: (await channel.httpSend(name, unwire(payload))).success });
  },
  async rest({ topic, name, payload }) {
    const message = { type: "broadcast", event: name, payload };
    say({ event: "sent", result: await client.channel(topic).send(message) });
  },
  async track({ topic, payload }) {
    const result = await channels.get(topic).track(payload);
    say({ event: "tracked", result, state: channels.get(topic).presenceState() });
  },
  async untrack({ topic }) {
    const result = await channels.get(topic).untrack();
    say({ event: "untracked", result, state: channels.get(topic).presenceState() });
  },
  async leave({ topic }) {
    say({ event: "left", result: await client.removeChannel(channels.get(topic)) });
  },
  async set_auth({ token }) {
    await client.realtime.setAuth(token);
    say({ event: "authorized" });
  },
};

createInterface({ input: process.stdin })
  .on("line", async (line) => {
    const { command, ...rest } = JSON.parse(line);
    try {
      await commands[command](rest);
    } catch (error) {
      say({ event: "error", command, error: String(error) });
    }
  })
  .on("close", () => process.exit(0));
say({ event: "ready" });
