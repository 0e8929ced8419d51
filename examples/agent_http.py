"""A complete agent with HTTP alone, on Python's standard library: it bids for tasks, works and reports.

    python agent_http.py http://127.0.0.1:7700 "$(convoke token --role agent --agent words --org demo)"

Its id is the agent_id of its token. AGENT_COST: what it asks for a task, in microdollars.
"""

import base64
import json
import os
import sys
import threading
import time
import urllib.error
import urllib.request

url, token = sys.argv[1:3]
ME = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))["agent_id"]
OFFER = {"cost": int(os.environ.get("AGENT_COST", "100")), "eta_ms": 50, "confidence": 0.9}
PRESENCE = {"capabilities": ["text.count"], "slots": 2, "description": "Counts words", "lease": "5s"}
jobs = {}  # The assignments that it works on, with the task and epoch of each.
direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def call(method, path, body=None):
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, headers, method=method)
    with direct.open(request, timeout=70) as answer:
        return json.loads(answer.read() or "null")


def work(given, progress):  # Counts the words of a text, as slowly as the input asks for.
    for step in range(1, 5):
        time.sleep(given.get("ms", 0) / 4000)
        progress(step / 4)  # An error here says that the assignment is over: the work stops.
    return {"words": len(given.get("text", "").split()), "by": ME}


def do(award):
    key = {"task_id": award["task_id"], "epoch": award["epoch"]}
    report = lambda kind, **more: call("POST", f"/v1/assignments/{award['assignment_id']}/{kind}", key | more)
    start = report("accept")  # The answer has the input; from now on it works under a lease.
    print("task_start", json.dumps(start), flush=True)
    jobs[award["assignment_id"]] = key
    try:
        report("result", result=work(start["input"], lambda share: report("progress", progress=share)))
    except urllib.error.HTTPError as error:
        print("stopped:", json.loads(error.read())["code"], flush=True)
    except Exception as error:
        report("failure", error={"message": str(error), "retryable": True})
    finally:
        del jobs[award["assignment_id"]]


def hear(said):
    print(json.dumps(said), flush=True)
    if said["type"] == "task_request":  # It may do this task: an offer is not binding until it is awarded.
        task = said["task"]
        call("POST", f"/v1/tasks/{task['id']}/offers", {"round": task["round"]} | OFFER)
    elif said["type"] == "task_assignment" and said["agent_id"] == ME:  # It won.
        threading.Thread(target=do, args=(said,), daemon=True).start()


call("PUT", f"/v1/agents/{ME}/presence", PRESENCE)
print("PRESENT", flush=True)  # From here on it is eligible, for as long as it asks for what was said to it.
after = 0
while True:
    inbox = call("GET", f"/v1/agents/{ME}/inbox?wait=8s&after={after}")
    after = inbox["next"]
    beats = [(f"/v1/assignments/{id}/heartbeat", key) for id, key in jobs.copy().items()]  # Keep its leases.
    todo = [(call, "POST", *beat) for beat in beats]
    todo += [(hear, it["payload"]) for it in inbox["messages"] if it["event"] == "coordination"]
    for do_it, *arguments in todo:
        try:
            do_it(*arguments)
        except urllib.error.HTTPError as error:  # Too late, perhaps: it goes on.
            print("refused:", json.loads(error.read())["code"], flush=True)
