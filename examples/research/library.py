#!/usr/bin/env python3
"""A small server of the Model Context Protocol on standard input and output, without any library.

It offers the documents of the folder `library`: `search` finds words in them, `read` returns one, and `add` keeps one
in the folder of RESEARCH_ADDITIONS. It knows the version without a handshake (2026-07-28) and the older ones that begin
with `initialize`.
"""

import json
import os
import re
import sys
from pathlib import Path

FOLDER = Path(__file__).parent / "library"
ADDITIONS = Path(os.environ["RESEARCH_ADDITIONS"])
VERSION = "2026-07-28"


def tool(name, description, only_reads, **lengths):
    schema = {
        "type": "object",
        "required": list(lengths),
        "additionalProperties": False,
        "properties": {name: {"type": "string", "minLength": 1, "maxLength": most} for name, most in lengths.items()},
    }
    hints = {"readOnlyHint": only_reads}
    return {"name": name, "description": description, "inputSchema": schema, "annotations": hints}


TOOLS = [
    tool("add", "Keeps a document in the library", False, document=40, text=400),
    tool("read", "Returns a document of the library", True, document=40),
    tool("search", "Returns the names of the documents that contain one of the words", True, words=100),
]


def documents():
    paths = sorted([*FOLDER.glob("*.txt"), *ADDITIONS.glob("*.txt")])
    return {path.stem: path.read_text(encoding="utf-8") for path in paths}


def call(name, arguments):
    """Returns the text of a result, and whether it is an error."""
    if name == "search":
        words = arguments["words"].lower().split()
        found = [title for title, text in documents().items() if any(word in text.lower() for word in words)]
        return json.dumps({"documents": found or list(documents())}), False
    if name == "add":
        if not re.fullmatch("[a-z0-9-]+", arguments["document"]):
            return "The name of a document has a-z 0-9 - only.", True
        if (FOLDER / (arguments["document"] + ".txt")).exists():
            return "The document is one of the town, which nobody replaces.", True
        (ADDITIONS / (arguments["document"] + ".txt")).write_text(arguments["text"] + "\n", encoding="utf-8")
        return "It is in the library.", False
    text = documents().get(arguments["document"])
    if text is None:
        return "There is no such document. There are: " + ", ".join(documents()), True
    return text, False


def answer(method, params):
    """Returns the result of a request, or None for a method that is not known."""
    about = {"name": "library", "version": "1"}
    if method == "server/discover":
        return {
            "resultType": "complete", "supportedVersions": [VERSION], "capabilities": {"tools": {}},
            "ttlMs": 60000, "cacheScope": "private", "_meta": {"io.modelcontextprotocol/serverInfo": about},
        }
    if method == "initialize":
        return {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": about}
    if method == "ping":
        return {}
    if method == "tools/list":
        return {"resultType": "complete", "tools": TOOLS, "ttlMs": 60000, "cacheScope": "private"}
    if method == "tools/call" and params.get("name") in ("add", "read", "search"):
        text, failed = call(params["name"], params.get("arguments") or {})
        return {"resultType": "complete", "content": [{"type": "text", "text": text}], "isError": failed}
    return None


for line in sys.stdin:
    message = json.loads(line)
    if "id" not in message or "method" not in message:
        continue  # A notification: there is nothing to answer.
    result = answer(message["method"], message.get("params") or {})
    reply = {"jsonrpc": "2.0", "id": message["id"]}
    if result is None:
        reply["error"] = {"code": -32601, "message": "unknown method or tool"}
    else:
        reply["result"] = result
    sys.stdout.write(json.dumps(reply) + "\n")
    sys.stdout.flush()
