"""The Gemini backend against a local stand-in of the service: uploads and their end, time offsets, usage, errors."""

from __future__ import annotations

import asyncio
import errno

import pytest

pytest.importorskip("google.genai", reason="google-genai (extra `synthesis`) is not installed")

from aiohttp import web
from stub_server import KEY

from data_prep.cache import SqliteCache
from data_prep.models.base import Media, ModelError, Request
from data_prep.models.calling import Caller, CallLimits
from data_prep.models.gemini import GeminiClient


class Service:
    """Attributes: `files` that are there, in the `state` that uploads begin in; `uploads` and `deleted` in all; `script`: errors for the next
    questions; `keeps_nothing`: it loses every file before it is asked about; `stuck`: it deletes nothing."""

    def __init__(self):
        self.uploads, self.asked, self.script = 0, [], []
        self.files: set[str] = set()
        self.deleted: list[str] = []
        self.state, self.keeps_nothing, self.stuck = "ACTIVE", False, False

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/upload/{version}/files", self.start)
        app.router.add_post("/put", self.put)
        app.router.add_post("/{version}/models/{name}", self.generate)
        app.router.add_get("/{version}/files/{name}", self.get)
        app.router.add_delete("/{version}/files/{name}", self.delete)
        return app

    async def start(self, request: web.Request) -> web.Response:
        return web.json_response({}, headers={"X-Goog-Upload-URL": f"http://{request.host}/put"})

    async def put(self, request: web.Request) -> web.Response:
        await request.read()
        self.uploads += 1
        self.files.add(name := f"upload{self.uploads}")
        return web.json_response(
            {"file": self.file(name)}, headers={"X-Goog-Upload-Status": "final"}
        )

    def file(self, name: str) -> dict:
        uri = f"https://files/{name}"
        return {"name": f"files/{name}", "uri": uri, "mimeType": "video/mp4", "state": self.state}

    async def get(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        return web.json_response(self.file(name)) if name in self.files else missing(name)

    async def delete(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if self.stuck:
            return web.json_response({"error": {"code": 500, "message": "no"}}, status=500)
        if name not in self.files:
            return missing(name)
        self.files.remove(name)
        self.deleted.append(name)
        return web.json_response({})

    async def generate(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.asked.append(body)
        if self.keeps_nothing:
            self.files.clear()
        for part in body["contents"][0]["parts"]:
            data = part.get("fileData") or part.get("file_data")
            if data is not None:
                name = (data.get("fileUri") or data.get("file_uri")).rpartition("/")[2]
                if name not in self.files:
                    return missing(name)
        if self.script:
            code, message, status = self.script.pop(0)
            return web.json_response(
                {"error": {"code": code, "message": message, "status": status}}, status=code
            )
        part = {
            "content": {"parts": [{"text": '{"answer": "B"}'}], "role": "model"},
            "finishReason": "STOP",
        }
        usage = {"promptTokenCount": 7, "candidatesTokenCount": 3, "thoughtsTokenCount": 2}
        return web.json_response(
            {"candidates": [part], "usageMetadata": usage, "modelVersion": "g-1"}
        )


def missing(name: str) -> web.Response:
    """As the service says it."""
    message = f"You do not have permission to access the File {name} or it may not exist."
    error = {"code": 403, "message": message, "status": "PERMISSION_DENIED"}
    return web.json_response({"error": error}, status=403)


def ask(service: Service, *requests: Request) -> list:
    """The replies or errors, asked at once; afterwards the client is closed."""

    async def together(client):
        return await asyncio.gather(
            *(client.complete(r, key="k") for r in requests), return_exceptions=True
        )

    return talk(service, together)


def talk(service: Service, say, **options):
    async def run():
        runner = web.AppRunner(service.app())
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]
        client = GeminiClient(
            model="g", api_key_env="TEST_KEY", base_url=f"http://127.0.0.1:{port}", **options
        )
        try:
            return await say(client)
        finally:
            await client.close()
            await runner.cleanup()

    return asyncio.run(run())


@pytest.fixture
def request_of(tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_KEY", KEY)
    path = tmp_path / "v.mp4"
    path.write_bytes(b"video")

    def make(*windows, identity="id"):
        media = Media("v.mp4", str(path), identity, windows)
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
    ("code", "message", "status", "kind"),
    [
        (429, "slow down", "X", "rate"), (503, "busy", "X", "server"), (400, "API key not valid", "X", "auth"), (403, "no", "X", "auth"),
        (400, "bad", "X", "request"), (404, "no model", "X", "refused"), (400, "not from here", "FAILED_PRECONDITION", "refused"),
    ],
)  # fmt: skip
def test_errors_have_kinds_and_no_key(request_of, code, message, status, kind):
    service = Service()
    service.script = [(code, f"{message} {KEY}", status)] * 8
    (error,) = ask(service, request_of())
    assert isinstance(error, ModelError) and error.kind == kind and KEY not in str(error)


def test_a_folder_of_frames_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("TEST_KEY", KEY)
    media = Media("frames", str(tmp_path), "id")
    (error,) = ask(Service(), Request("verify", "p", "s", "t", {}, media))
    assert isinstance(error, ModelError) and error.kind == "media"


def test_a_run_leaves_no_upload_behind(request_of):
    service = Service()
    ask(service, request_of(), request_of((1.0, 2.0)), request_of(identity="other"))
    assert service.uploads == 2 and not service.files


def test_a_service_that_deletes_nothing_costs_no_reply(request_of):
    service = Service()
    service.stuck = True
    (reply,) = ask(service, request_of())
    assert reply.text == '{"answer": "B"}' and len(service.files) == 1


def test_an_upload_that_has_expired_goes_up_again_once(request_of):
    service = Service()

    async def say(client):
        await client.complete(request_of(), key="k")
        service.files.clear()
        return await asyncio.gather(
            *(client.complete(request_of((n, n + 1.0)), key="k") for n in range(4))
        )

    replies = talk(service, say)
    assert [r.text for r in replies] == ['{"answer": "B"}'] * 4
    assert service.uploads == 2 and not service.files


def test_a_service_that_keeps_no_upload_is_no_matter_of_the_key(request_of):
    service = Service()
    service.keeps_nothing = True
    (error,) = ask(service, request_of())
    assert isinstance(error, ModelError) and error.kind == "refused" and "v.mp4" in str(error)
    assert service.uploads == 2


def test_the_least_recently_used_upload_makes_room(request_of):
    service = Service()

    async def say(client):
        for identity in ("a", "b", "a", "c", "a", "b"):
            await client.complete(request_of(identity=identity), key="k")
            await asyncio.sleep(0.05)  # nobody waits for what is deleted
            assert len(service.files) <= 2
        before_the_end = list(service.deleted)
        # More at once than are kept: none goes while it is asked about.
        await asyncio.gather(
            *(client.complete(request_of(identity=str(n)), key="k") for n in range(6))
        )
        return before_the_end

    assert talk(service, say, uploads=2) == ["upload2", "upload3"]
    assert service.uploads == 10 and not service.files


def test_an_upload_that_nobody_waited_for_to_the_end_is_deleted_too(request_of, monkeypatch):
    monkeypatch.setattr("data_prep.models.uploads._POLL", 0.01)
    service = Service()
    service.state = "PROCESSING"

    async def say(client):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await client.complete(request_of(), key="k")
        assert len(service.files) == 1

    talk(service, say)
    assert service.uploads == 1 and not service.files


def test_an_upload_that_outlasts_a_try_is_waited_for_by_the_next(request_of, tmp_path, monkeypatch):  # fmt: skip
    monkeypatch.setattr("data_prep.models.uploads._POLL", 0.01)
    service = Service()
    service.state = "PROCESSING"
    limits = CallLimits(timeout=0.3, attempts=20, first_wait=0.01, longest_wait=0.02)

    async def say(client):
        caller = Caller(client, SqliteCache(tmp_path / "c.sqlite"), limits=limits)

        async def processed():
            await asyncio.sleep(1.0)
            service.state = "ACTIVE"

        answer, _ = await asyncio.gather(caller.ask(request_of()), processed())
        return answer, caller.tally.retries

    answer, retries = talk(service, say)
    assert answer.value == {"answer": "B"} and retries > 0
    assert service.uploads == 1 and len(service.asked) == 1


def test_a_video_that_the_service_cannot_process_is_a_verdict_and_deleted(request_of):
    service = Service()
    service.state = "FAILED"
    (error,) = ask(service, request_of())
    assert isinstance(error, ModelError) and error.kind == "media" and not service.files


def test_a_video_that_is_not_there_is_none(monkeypatch, tmp_path):
    monkeypatch.setenv("TEST_KEY", KEY)
    media = Media("v.mp4", str(tmp_path / "v.mp4"), "id")
    (error,) = ask(Service(), Request("verify", "p", "s", "t", {}, media))
    assert isinstance(error, ModelError) and error.kind == "storage"


def test_storage_that_fails_is_no_fault_of_the_service(request_of, monkeypatch):
    def size(path):
        raise OSError(errno.EIO, "Input/output error", path)

    monkeypatch.setattr("data_prep.models.uploads.os.path.getsize", size)
    (error,) = ask(Service(), request_of())
    assert isinstance(error, ModelError) and error.kind == "storage" and "v.mp4" in str(error)
