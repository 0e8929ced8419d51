"""The Python realtime client on strings: one JSON command a line on stdin, one JSON event a line on stdout.

usage: python client_process.py <websocket url> <key>
"""

import asyncio
import json
import logging
import os
import sys

from realtime import AsyncRealtimeClient, RealtimePostgresChangesListenEvent

logging.disable(logging.CRITICAL)


def say(**event):
    print(json.dumps(event), flush=True)


class ClientProcess:
    def __init__(self, url, key):
        client_id = os.environ.get("CLIENT_ID")
        params = {"client_id": client_id} if client_id else {}
        self.client = AsyncRealtimeClient(url, key, params=params, max_retries=100, initial_backoff=0.05)
        self.channels = {}

    async def join(self, topic, config, changes=()):
        channel = self.client.channel(topic, {"config": config})
        self.channels[topic] = channel
        for name in ("coordination", "ping", "m"):
            channel.on_broadcast(
                name,
                lambda message: say(
                    event="broadcast",
                    topic=topic,
                    name=message["event"],
                    payload=message["payload"],
                    meta=message.get("meta"),
                ),
            )
        channel.on_presence_sync(lambda: say(event="sync", topic=topic, state=channel.presence_state()))
        channel.on_system(lambda message: say(event="system", topic=topic, message=str(message)))
        for at, binding in enumerate(changes):
            event = RealtimePostgresChangesListenEvent(binding.pop("event"))
            channel.on_postgres_changes(event, self.change(topic, at), **binding)
        await channel.subscribe(
            lambda status, error: say(
                event="status", topic=topic, status=status.value, error=str(error) if error else None
            )
        )

    @staticmethod
    def change(topic, at):
        def tell(payload):
            data = payload["data"]
            say(
                event="change",
                topic=topic,
                at=at,
                type=data["type"],
                table=data["table"],
                record=data.get("record") or {},
                old=data.get("old_record") or {},
                errors=data["errors"],
            )

        return tell

    async def send(self, topic, name, payload):
        await self.channels[topic].send_broadcast(name, payload)
        say(event="sent", result="ok")

    async def http_send(self, topic, name, payload):
        await self.channels[topic].http_send(name, payload)
        say(event="sent", result=True)

    async def track(self, topic, payload):
        await self.channels[topic].track(payload)
        say(event="tracked")

    async def untrack(self, topic):
        await self.channels[topic].untrack()
        say(event="untracked")

    async def set_auth(self, token):
        await self.client.set_auth(token)
        say(event="authorized")

    async def leave(self, topic):
        await self.client.remove_channel(self.channels[topic])
        say(event="left")


async def main():
    client = ClientProcess(*sys.argv[1:3])
    await client.client.connect()
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
    )
    say(event="ready")
    while line := await lines.readline():
        command = json.loads(line)
        name = command.pop("command")
        try:
            await getattr(client, name)(**command)
        except Exception as error:  # told to the test, which decides
            say(event="error", command=name, error=repr(error))


asyncio.run(main())
