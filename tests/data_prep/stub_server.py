"""A local endpoint that speaks chat completions: replies by stage, misbehaves on demand, and counts what it was asked.

Questions written as "Pick C" carry their own answer, so that the stub can play a model that is always right. Run as a script it
serves until it is killed: `python tests/data_prep/stub_server.py PORT DELAY`.
"""

from __future__ import annotations

import asyncio
import collections
import json
import re
import sys
import threading

from aiohttp import web

KEY = "sk-secret-0123456789"


class Stub:
    """Attributes: `calls` by idempotency key, `bodies`, `headers` of every request; `script` holds behaviours for the next requests."""

    def __init__(self, *, delay: float = 0.0):
        self.delay = delay
        self.calls: collections.Counter = collections.Counter()
        self.finished: collections.Counter = collections.Counter()
        self.bodies: list[dict] = []
        self.headers: list[dict] = []
        self.script: list = []
        self.at_once = self.most_at_once = 0

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 28)
        app.router.add_post("/v1/chat/completions", self.complete)
        app.router.add_get("/count", self.count)
        return app

    async def count(self, request: web.Request) -> web.Response:
        return web.json_response({"calls": dict(self.calls), "finished": dict(self.finished)})

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        key = request.headers.get("Idempotency-Key", "")
        self.calls[key] += 1
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(self.delay)
            if self.script:
                step = self.script.pop(0)
                response = await step(request) if callable(step) else reply(step)
            else:
                response = reply(answer(body))
            if isinstance(response, web.Response):
                await response.prepare(request)
                await response.write_eof()
            self.finished[key] += 1
            return response
        finally:
            self.at_once -= 1


def reply(text: str, *, finish: str = "stop") -> web.Response:
    usage = {"prompt_tokens": 100, "completion_tokens": 10}
    choice = {
        "index": 0,
        "finish_reason": finish,
        "message": {"role": "assistant", "content": text},
    }
    return web.json_response({"model": "stub-1", "choices": [choice], "usage": usage})


def status(code: int, **headers: str):
    async def step(request: web.Request) -> web.Response:
        echoed = request.headers.get("Authorization", "")
        return web.Response(status=code, text=f"refused {echoed}", headers=headers)

    return step


async def hang(request: web.Request) -> web.Response:
    await asyncio.sleep(60)
    return reply("{}")


async def half(request: web.Request) -> web.StreamResponse:
    """Half of a reply, then the connection is cut."""
    response = web.StreamResponse(headers={"Content-Length": "1000", "Content-Type": "application/json"})  # fmt: skip
    await response.prepare(request)
    await response.write(b'{"choices": [{"mess')
    request.transport.close()
    return response


def answer(body: dict) -> str:
    """What a model that is always right says."""
    stage = body.get("response_format", {}).get("json_schema", {}).get("name", "")
    content = body["messages"][1]["content"]
    text = "\n".join(p["text"] for p in content if p["type"] == "text") if isinstance(content, list) else content  # fmt: skip
    right = (re.search(r"Pick ([A-D])", text) or ["", "A"])[1]
    if stage == "localise":
        return json.dumps(
            {"clues": [{"timestamp": ["0:02", "0:06"], "text": "there"}], "detail": "high"}
        )
    if stage == "verify":
        return json.dumps({"answer": "unknown" if "the whole video, coarsely" in text else right})
    if stage == "generate":
        look = {"think": "something small shows early on.", "grounding": [2, 6]}
        return json.dumps({"turns": [look, {"think": f"the sign reads {right}.", "answer": right}]})
    if stage == "judge":
        return json.dumps({"analysis": "sound", "is_valid": True})
    return json.dumps({"same": True, "clues": [], "captions": [], "questions": [], "segment": None})


class Serving:
    """The stub in a thread of its own; `with Serving(stub) as url`."""

    def __init__(self, stub: Stub):
        self._stub = stub
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        runner = web.AppRunner(self._stub.app(), handle_signals=False, shutdown_timeout=0.1)
        self._loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", 0)
        self._loop.run_until_complete(site.start())
        self.port = site._server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())

    def __enter__(self) -> str:
        self._thread.start()
        self._ready.wait(20)
        return f"http://127.0.0.1:{self.port}/v1"

    def __exit__(self, *error) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)


if __name__ == "__main__":
    web.run_app(
        Stub(delay=float(sys.argv[2])).app(), host="127.0.0.1", port=int(sys.argv[1]), print=None
    )
