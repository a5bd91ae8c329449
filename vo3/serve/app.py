"""The web server: OpenAI's paths on one side, the desk on the other."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import time
from collections.abc import AsyncIterator
from typing import Any

import fastapi
from fastapi import Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

import vo3
from vo3.rollout import Rollout, events
from vo3.serve import body, page
from vo3.serve.desk import Desk, Ticket
from vo3.serve.errors import ApiError, invalid, shown
from vo3.serve.guard import Guard
from vo3.serve.metrics import CONTENT_TYPE, Metrics
from vo3.serve.replies import Reply, public
from vo3.serve.request import Ask, read
from vo3.serve.settings import Settings
from vo3.serve.telling import Pieces, tell, whole
from vo3.serve.uploads import Uploads
from vo3.trajectory import Task

# A stream whose question waits longer than this for its first event begins without one: proxies cut what stays silent.
_PATIENCE_S = 10.0
# Uploads at a time.
_UPLOADING = 4


def make_app(desk: Desk, settings: Settings) -> fastapi.FastAPI:
    """The application. It starts and ends the desk's thread."""
    server = Server(desk, settings)

    @contextlib.asynccontextmanager
    async def lifespan(_: fastapi.FastAPI) -> AsyncIterator[None]:
        desk.start()
        try:
            yield
        finally:
            await asyncio.to_thread(desk.close)
            server.uploads.close()

    app = fastapi.FastAPI(
        title="vo3", version=vo3.__version__, lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None
    )  # fmt: skip
    app.add_middleware(Guard, keys=settings.keys, names=settings.names, metrics=server.metrics)
    app.add_exception_handler(HTTPException, _unknown)
    for method, path, endpoint in (
        ("GET", "/", server.page),
        ("GET", "/health", server.health),
        ("GET", "/metrics", server.show_metrics),
        ("GET", "/v1/models", server.models),
        ("GET", "/v1/models/{name:path}", server.model),
        ("POST", "/v1/chat/completions", server.chat),
        ("POST", "/v1/files", server.upload),
        ("GET", "/v1/files/{name}", server.file),
        ("DELETE", "/v1/files/{name}", server.delete_file),
    ):
        app.add_route(path, endpoint, methods=[method])
    return app


async def _unknown(request: Request, error: HTTPException) -> Response:
    """A path or method that is not there."""
    code = "not_found" if error.status_code == 404 else "not_allowed"
    raise ApiError(error.status_code, code, f"{request.method} {shown(request.url.path)} is not known here; see docs/serving.md", headers=error.headers)  # fmt: skip


class Server:
    """The endpoints."""

    def __init__(self, desk: Desk, settings: Settings):
        self.desk, self.settings, self.limits = desk, settings, settings.limits
        self.uploads = Uploads(settings.limits)
        self.metrics = Metrics(desk)
        self._began = int(time.time())
        self._uploading = 0
        self._held = 0.0  # bytes of requests under way

    async def page(self, _: Request) -> Response:
        """The page for people."""
        # Its key field is nothing to be shown inside of another site's page.
        headers = {"Content-Security-Policy": "frame-ancestors 'none'", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}  # fmt: skip
        return HTMLResponse(page.render(self.settings), headers=headers)

    async def health(self, _: Request) -> Response:
        """Whether questions are answered."""
        told = {
            "status": "ok" if self.desk.alive else "down",
            "model": self.settings.model,
            "running": self.desk.running,
            "waiting": self.desk.waiting,
        }
        return JSONResponse(told, 200 if self.desk.alive else 503)

    async def show_metrics(self, _: Request) -> Response:
        """See `Metrics`."""
        return Response(self.metrics.text(), media_type=CONTENT_TYPE)

    async def models(self, _: Request) -> Response:
        """The one model."""
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        """The one model, by its name."""
        name = request.path_params["name"]
        if name != self.settings.model:
            raise ApiError(404, "model_not_found", f"there is no model {shown(name)} here; ask for {self.settings.model!r}")  # fmt: skip
        return JSONResponse(self._model())

    def _model(self) -> dict[str, Any]:
        return {"id": self.settings.model, "object": "model", "created": self._began, "owned_by": "vo3"}  # fmt: skip

    # Files.

    async def upload(self, request: Request) -> Response:
        """Keeps a video to be asked about."""
        if self._uploading >= _UPLOADING:
            raise ApiError(429, "uploads_busy", f"{_UPLOADING} uploads are under way; try again in a moment", headers={"Retry-After": "2"})  # fmt: skip
        self._uploading += 1
        try:
            limits = self.limits
            form = await body.read_form(request, limit=limits.upload, timeout_s=limits.read_s)
            try:
                file = form.get("file")
                if file is None or isinstance(file, str):
                    raise invalid("the form has no file; send it as the field 'file'", param="file")
                purpose = str(form.get("purpose") or "user_data")
                found = await asyncio.to_thread(self._keep, file, purpose)
            finally:
                await form.close()
        finally:
            self._uploading -= 1
        return JSONResponse(found.to_json())

    def _keep(self, file: fastapi.UploadFile, purpose: str):
        name, target = self.uploads.write()
        try:
            with target:
                shutil.copyfileobj(file.file, target, 1 << 20)
        except OSError:  # the disk is full: what is there of it must not fill it further
            self.uploads.drop(name)
            raise
        return self.uploads.keep(name, file.filename or "video", purpose)

    async def file(self, request: Request) -> Response:
        """What is known of an upload."""
        return JSONResponse(self.uploads.get(request.path_params["name"]).to_json())

    async def delete_file(self, request: Request) -> Response:
        """Deletes an upload."""
        name = request.path_params["name"]
        self.uploads.remove(name)
        return JSONResponse({"id": name, "object": "file", "deleted": True})

    # Questions.

    async def chat(self, request: Request) -> Response:
        """Answers a question, in one piece or as a stream."""
        ticket, size = await self._take(request)
        call = Call(self, request, ticket, size)
        try:
            if ticket.ask.stream:
                return await call.stream()
            return await call.whole()
        except BaseException:
            call.close()
            raise

    async def _take(self, request: Request) -> tuple[Ticket, float]:
        """Reads the request and puts it into the queue; gives the bytes that it holds too."""
        arrived, limits = time.monotonic(), self.limits
        size = min(body.declared(request, limits.body), limits.body)
        self.desk.reserve()
        try:
            self._hold(size)
        except ApiError:
            self.desk.release()
            raise
        try:
            raw = await body.read_json(request, limit=limits.body, timeout_s=limits.read_s)
            ask = await asyncio.to_thread(
                read, raw, self.settings, self.uploads, context=self.desk.engine.max_length
            )
            # Here, and not where it is read: nobody would let go for a request that is cancelled while a thread reads it.
            ask.video.hold()
        except BaseException:
            self.desk.release()
            self.let_go(size)
            raise
        name = request.state.id.replace("req-", "chatcmpl-")
        ticket = Ticket(name, ask, events=ask.stream, arrived=arrived)
        self.desk.submit(ticket)
        return ticket, size

    def _hold(self, size: float) -> None:
        """Makes room in memory for a request.

        Raises:
          ApiError: 429 where there is none.
        """
        # The first may always come, however large.
        if self._held and self._held + size > self.limits.bodies:
            raise ApiError(429, "requests_busy", "too many large requests are under way; upload videos with POST /v1/files, or ask again in 5 s", headers={"Retry-After": "5"})  # fmt: skip
        self._held += size

    def let_go(self, size: float) -> None:
        """A request is done with."""
        self._held -= size


class Call:
    """One question on its way back to its client."""

    def __init__(self, server: Server, request: Request, ticket: Ticket, size: float):
        """The question of a ticket; `size`: bytes that its request holds."""
        self._server, self._ticket, self._size = server, ticket, size
        self._deadline = ticket.arrived + server.limits.request_s
        self._closed = False
        self._ask: Ask = ticket.ask
        self._reply = Reply(
            ticket.id, server.settings.model, ticket.ask, dialect=server.desk.engine.policy.dialect
        )
        self._id = request.state.id
        task = Task(ticket.id, ticket.ask.video.label, ticket.ask.question, ticket.ask.options)
        self._pieces = Pieces(task) if ticket.ask.extension.events == "html" else None
        self._watch = asyncio.create_task(self._until_it_leaves(request))

    async def _until_it_leaves(self, request: Request) -> None:
        """Ends the question when nobody waits any more, and when its time is over: its handler may itself wait for a client that reads nothing."""
        try:
            async with asyncio.timeout(max(0.0, self._deadline - time.monotonic())):
                while (await request.receive())["type"] != "http.disconnect":
                    pass
        except TimeoutError:
            limit = self._server.limits.request_s
            end = ApiError(504, "timeout", f"no answer within {limit:g} s; ask again when fewer questions wait, or with fewer max_turns")  # fmt: skip
        else:
            self._server.metrics.left.inc()
            end = ApiError(499, "client_left", "the client left")
        self._ticket.end(end)
        self.close()  # a stream that has not begun has nobody else who would

    def close(self) -> None:
        """The question is done with, however it ended; may be called again."""
        if self._closed:
            return
        self._closed = True
        self._watch.cancel()
        self._ticket.leave()
        self._ask.video.close()
        self._server.let_go(self._size)
        self._server.metrics.seconds.observe(time.monotonic() - self._ticket.arrived)
        if self._ticket.began is not None:
            self._server.metrics.queued.observe(self._ticket.began - self._ticket.arrived)

    async def _next(self, patience_s: float | None = None) -> events.Event | Rollout | None:
        """The next item; None when the patience is over.

        Raises:
          ApiError: it came to nothing, or takes too long.
        """
        try:
            return await asyncio.wait_for(self._ticket.next(), patience_s)
        except TimeoutError:
            return None

    async def whole(self) -> Response:
        """The answer in one piece."""
        rollout = await self._next()
        self._server.metrics.answered(rollout)
        answer = JSONResponse(self._reply.completion(rollout))
        self.close()
        return answer

    async def stream(self) -> Response:
        """The answer as a stream. What is wrong with the question is told by the status, before it begins."""
        first = await self._next(_PATIENCE_S)
        return StreamingResponse(
            self._lines(first),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )

    async def _lines(self, item: events.Event | Rollout | None) -> AsyncIterator[bytes]:
        try:
            yield _line(self._reply.opening())
            while not isinstance(item, Rollout):
                if item is None:
                    yield b": waiting\n\n"
                else:
                    chunk = await self._chunk(item)
                    if chunk is not None:
                        yield _line(chunk)
                item = await self._next(_PATIENCE_S)
            self._server.metrics.answered(item)
            html = None
            if self._pieces is not None:
                trajectory = public(item.trajectory, self._server.settings.model)
                html = await asyncio.to_thread(whole, trajectory, item.clips)
            for chunk in self._reply.closing(item, html):
                yield _line(chunk)
            yield b"data: [DONE]\n\n"
        except ApiError as error:
            yield _line(error.body(self._id))
            yield b"data: [DONE]\n\n"
        finally:
            self.close()

    async def _chunk(self, event: events.Event) -> dict[str, Any] | None:
        chunk, pieces = None, self._pieces
        if isinstance(event, events.Token):
            self._server.metrics.first_token(self._ticket)
            chunk = self._reply.token(event.number, event.text)
        if self._ask.extension.events:
            light = pieces is None or isinstance(event, events.Token | events.TurnStart)
            told = tell(event) if light else await asyncio.to_thread(pieces.tell, event)
            chunk = (chunk or self._reply.empty()) | {"vo3": told}
        return chunk


def _line(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n\n"  # fmt: skip
