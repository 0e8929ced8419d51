// A complete remote agent in JavaScript, on unmodified supabase-js: it bids for tasks, works and reports.
//
//   node agent.mjs http://127.0.0.1:7700 "$(convoke token --role agent --agent words --org demo)"
//
// Its id is the agent_id of its token. AGENT_COST is what it asks for a task, in microdollars.
import { createClient } from "@supabase/supabase-js";
import WebSocket from "ws"; // Node.js before 22 has no WebSocket of its own.

const [url, token] = process.argv.slice(2);
const id = JSON.parse(Buffer.from(token.split(".")[1], "base64url")).agent_id;
const cost = Number(process.env.AGENT_COST ?? 100);

const client = createClient(url, token, {
  realtime: { transport: WebSocket },
  auth: { persistSession: false, autoRefreshToken: false },
});
const channel = client.channel(`agent:${id}`, { config: { broadcast: { ack: true } } });

const say = (type, members) =>
  channel.send({
    type: "broadcast",
    event: "coordination",
    payload: { type, agent_id: id, timestamp: new Date().toISOString(), ...members },
  });

// The work itself: counts the words of a text, as slowly as the input asks for.
async function work(input, progress) {
  const steps = 4;
  for (let step = 1; step <= steps; step++) {
    await new Promise((done) => setTimeout(done, (input?.ms ?? 0) / steps));
    await progress(step / steps);
  }
  return { words: String(input?.text ?? "").split(/\s+/).filter(Boolean).length, by: id };
}

const stopped = new Set(); // Assignments that were canceled or given to another.

const on = {
  // A task that this agent may do: the offer binds nobody until it is awarded.
  task_request: ({ task }) =>
    say("task_offer", {
      task_id: task.id,
      round: task.round,
      offer: { cost, eta_ms: 50, confidence: 0.9 },
    }),
  // It won: it accepts, and gets the input in the answer. (A requester gets copies of others' awards.)
  task_assignment: ({ agent_id, task_id, assignment_id, epoch }) =>
    agent_id === id && say("task_accept", { task_id, assignment_id, epoch }),
  async task_start({ task_id, assignment_id, epoch, input, lease_ms }) {
    const key = { task_id, assignment_id, epoch };
    const beat = setInterval(() => say("heartbeat", key), lease_ms / 3);
    try {
      const report = (progress) => say("task_progress", { ...key, progress });
      const result = await work(input, report);
      if (!stopped.delete(assignment_id)) await say("task_result", { ...key, result });
    } catch (error) {
      await say("task_failure", { ...key, error: { message: error.message, retryable: true } });
    } finally {
      clearInterval(beat);
    }
  },
  task_cancel: ({ assignment_id }) => stopped.add(assignment_id),
};

channel.on("broadcast", { event: "coordination" }, ({ payload }) => {
  console.log(JSON.stringify(payload));
  on[payload.type]?.(payload);
});
channel.subscribe(async (status, error) => {
  console.log(status, error?.message ?? "");
  // From here on it is eligible, and as long as this socket lives.
  if (status === "SUBSCRIBED")
    await channel.track({ capabilities: ["text.count"], slots: 2, description: "Counts words" });
});
