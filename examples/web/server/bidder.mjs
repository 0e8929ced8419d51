// @ts-check
// The program that bids against people in the agent console: agent `robot`, on unmodified supabase-js.
import { createClient } from "@supabase/supabase-js";
import WebSocket from "ws";

const COST_MICRODOLLARS = 500;
const WORK_MS = 4000;

/**
 * Starts it; it offers for every task whose requirements it has.
 * @param {string} url @param {string} token @param {{ cost?: number, workMs?: number, agent?: string, capabilities?: string[] }} [options]
 */
export function startBidder(url, token, { cost = COST_MICRODOLLARS, workMs = WORK_MS, agent = "robot", capabilities = ["text.write", "text.review"] } = {}) {
  const client = createClient(url, token, {
    realtime: { transport: /** @type {any} */ (WebSocket) },
    accessToken: async () => token,
  });
  const channel = client.channel(`agent:${agent}`, { config: { broadcast: { ack: true } } });
  /** @type {Map<string, NodeJS.Timeout>} */
  const working = new Map();
  const say = (/** @type {string} */ type, /** @type {object} */ members) =>
    channel.send({ type: "broadcast", event: "coordination", payload: { type, agent_id: agent, timestamp: new Date().toISOString(), ...members } });

  const on = /** @type {Record<string, (payload: any) => unknown>} */ ({
    task_request: ({ task }) => say("task_offer", { task_id: task.id, round: task.round, offer: { cost, eta_ms: workMs, confidence: 0.7 } }),
    task_assignment: ({ agent_id, task_id, assignment_id, epoch }) =>
      agent_id === agent && say("task_accept", { task_id, assignment_id, epoch }),
    task_start: ({ task_id, assignment_id, epoch, input, checkpoint }) => {
      const key = { task_id, assignment_id, epoch };
      let done = Number(checkpoint?.progress ?? 0);
      working.set(assignment_id, setInterval(() => {
        done = Math.min(1, done + 0.25);
        if (done < 1) return void say("task_progress", { ...key, progress: done, activity: "writing", checkpoint: { progress: done } });
        clearInterval(working.get(assignment_id));
        working.delete(assignment_id);
        const text = String(input?.text ?? "");
        void say("task_result", { ...key, result: { text: `robot: ${text.slice(0, 200)}`, resumed_at: checkpoint?.progress ?? null } });
      }, workMs / 4));
    },
    task_cancel: ({ assignment_id }) => {
      clearInterval(working.get(assignment_id));
      working.delete(assignment_id);
    },
  });
  channel.on("broadcast", { event: "coordination" }, ({ payload }) => on[payload.type]?.(payload));
  channel.subscribe((status) => {
    if (status === "SUBSCRIBED") void channel.track({ capabilities, slots: 4, description: "A program that bids for everything" });
  });
  return {
    stop() {
      for (const timer of working.values()) clearInterval(timer);
      void client.removeAllChannels();
    },
  };
}
