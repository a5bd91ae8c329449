"""The Gemini backend against a local stand-in of the service: one upload, time offsets, usage, errors."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("google.genai", reason="google-genai (extra `synthesis`) is not installed")

from aiohttp import web
from stub_server import KEY

from data_prep.models.base import Media, ModelError, Request
from data_prep.models.gemini import GeminiClient


class Service:
    def __init__(self):
        self.uploads, self.asked, self.script = 0, [], []

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/upload/{version}/files", self.start)
        app.router.add_post("/put", self.put)
        app.router.add_post("/{version}/models/{name}", self.generate)
        return app

    async def start(self, request: web.Request) -> web.Response:
        return web.json_response({}, headers={"X-Goog-Upload-URL": f"http://{request.host}/put"})

    async def put(self, request: web.Request) -> web.Response:
        await request.read()
        self.uploads += 1
        file = {
            "name": "files/x",
            "uri": "https://files/x",
            "mimeType": "video/mp4",
            "state": "ACTIVE",
        }
        return web.json_response({"file": file}, headers={"X-Goog-Upload-Status": "final"})

    async def generate(self, request: web.Request) -> web.Response:
        self.asked.append(await request.json())
        if self.script:
            code, message = self.script.pop(0)
            return web.json_response(
                {"error": {"code": code, "message": message, "status": "X"}}, status=code
            )
        part = {
            "content": {"parts": [{"text": '{"answer": "B"}'}], "role": "model"},
            "finishReason": "STOP",
        }
        usage = {"promptTokenCount": 7, "candidatesTokenCount": 3, "thoughtsTokenCount": 2}
        return web.json_response(
            {"candidates": [part], "usageMetadata": usage, "modelVersion": "g-1"}
        )


def ask(service: Service, *requests: Request) -> list:
    async def run():
        runner = web.AppRunner(service.app())
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]
        client = GeminiClient(
            model="g", api_key_env="TEST_KEY", base_url=f"http://127.0.0.1:{port}"
        )
        try:
            return await asyncio.gather(
                *(client.complete(r, key="k") for r in requests), return_exceptions=True
            )
        finally:
            await client.close()
            await runner.cleanup()

    return asyncio.run(run())


@pytest.fixture
def request_of(tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_KEY", KEY)
    path = tmp_path / "v.mp4"
    path.write_bytes(b"video")

    def make(*windows):
        media = Media("v.mp4", str(path), "id", windows)
        return Request("verify", "p", "system", "what?", {"type": "object"}, media, history=(("assistant", "x"), ("user", "y")))  # fmt: skip

    return make


def test_a_video_goes_up_once_and_windows_are_offsets(request_of):
    service = Service()
    first, second = ask(service, request_of(), request_of((2.0, 6.5), (9.0, 12.0)))
    assert service.uploads == 1
    assert first.text == '{"answer": "B"}' and (first.prompt_tokens, first.reply_tokens) == (7, 5)
    assert first.model == second.model == "g-1" and not first.cut
    body = next(b for b in service.asked if len(b["contents"][0]["parts"]) == 3)
    metas = [p["videoMetadata"] for p in body["contents"][0]["parts"][:2]]
    # The service reads both spellings, and the client's versions write either.
    offsets = [m.get("startOffset", m.get("start_offset")) for m in metas]
    assert offsets == ["2.000s", "9.000s"]
    assert [c["role"] for c in body["contents"]] == ["user", "model", "user"]


@pytest.mark.parametrize(
    ("code", "message", "kind"),
    [(429, "slow down", "rate"), (503, "busy", "server"), (400, "API key not valid", "auth"), (403, "no", "auth"), (400, "bad", "request")],
)  # fmt: skip
def test_errors_have_kinds_and_no_key(request_of, code, message, kind):
    service = Service()
    service.script = [(code, f"{message} {KEY}")] * 8
    (error,) = ask(service, request_of())
    assert isinstance(error, ModelError) and error.kind == kind and KEY not in str(error)


def test_a_folder_of_frames_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("TEST_KEY", KEY)
    media = Media("frames", str(tmp_path), "id")
    (error,) = ask(Service(), Request("verify", "p", "s", "t", {}, media))
    assert isinstance(error, ModelError) and error.kind == "media"
