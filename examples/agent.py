"""A complete remote agent in Python, on the unmodified realtime client: it bids for tasks, works and reports.

    python agent.py ws://127.0.0.1:7700/realtime/v1 "$(convoke token --role agent --agent words --org demo)"

Its id is the agent_id of its token. AGENT_COST: what it asks for a task, in microdollars.
"""

import asyncio
import base64
import json
import os
import sys

from realtime import AsyncRealtimeClient

url, token = sys.argv[1:3]
ME = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))["agent_id"]
OFFER = {"cost": int(os.environ.get("AGENT_COST", "100")), "eta_ms": 50, "confidence": 0.9}
running = set()  # What is under way; asyncio itself keeps only weak references.
jobs = {}  # The assignments that it works on.


def start(coroutine):
    running.add(task := asyncio.ensure_future(coroutine))
    task.add_done_callback(running.discard)
    return task


async def work(given, progress):  # Counts the words of a text, as slowly as the input asks for.
    for step in range(1, 5):
        await asyncio.sleep(given.get("ms", 0) / 4000)
        await progress(step / 4)
    return {"words": len(given.get("text", "").split()), "by": ME}


async def main():
    client = AsyncRealtimeClient(url, token)
    channel = client.channel(f"agent:{ME}")

    async def say(kind, **members):
        await channel.send_broadcast("coordination", {"type": kind, "agent_id": ME, **members})

    async def beat(key, seconds):
        while await asyncio.sleep(seconds, True):
            await say("heartbeat", **key)

    async def do(said, key):
        heart = start(beat(key, said["lease_ms"] / 3000))
        try:
            result = await work(said["input"], lambda share: say("task_progress", **key, progress=share))
            await say("task_result", **key, result=result)
        except Exception as error:
            await say("task_failure", **key, error={"message": str(error), "retryable": True})
        finally:
            heart.cancel()

    async def hear(said):
        print(json.dumps(said), flush=True)
        key = {name: said.get(name) for name in ("task_id", "assignment_id", "epoch")}
        if said["type"] == "task_request":  # It may do this task: an offer is not binding until it is awarded.
            await say("task_offer", task_id=said["task"]["id"], round=said["task"]["round"], offer=OFFER)
        elif said["type"] == "task_assignment" and said["agent_id"] == ME:  # It won, and gets the input.
            await say("task_accept", **key)
        elif said["type"] == "task_start":
            jobs[said["assignment_id"]] = start(do(said, key))
        elif said["type"] == "task_cancel" and (job := jobs.pop(said["assignment_id"], None)):
            job.cancel()

    def subscribed(status, error):
        print(status.value, error or "", flush=True)
        if status.value == "SUBSCRIBED":  # From here on it is eligible, and as long as this socket lives.
            start(channel.track({"capabilities": ["text.count"], "slots": 2, "description": "Counts words"}))

    channel.on_broadcast("coordination", lambda message: start(hear(message["payload"])))
    await channel.subscribe(subscribed)
    await asyncio.Event().wait()


asyncio.run(main())
