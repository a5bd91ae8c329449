"""Around every request: an id, the checks of who asks, one way to answer errors, one line in the log."""

from __future__ import annotations

import hmac
import logging
import secrets
import time
import urllib.parse
from collections.abc import Collection, Sequence

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vo3.serve.errors import ApiError
from vo3.serve.metrics import Metrics

log = logging.getLogger("vo3.serve")
# What anybody may see: whether the server is up, and the page, which holds nothing but itself.
OPEN = frozenset(("/", "/health", "/favicon.ico"))
_PATHS = frozenset(("/v1/chat/completions", "/v1/models", "/v1/files", "/metrics")) | OPEN
# Nobody reads the answer to a client that has left; the number is nginx's.
LEFT = 499


class Guard:
    """ASGI middleware."""

    def __init__(
        self, app: ASGIApp, *, keys: Sequence[str], names: Collection[str] | None, metrics: Metrics
    ):
        """Guards an application.

        Args:
          app: behind it.
          keys: of clients; none: everybody may ask.
          names: see `Settings.names`.
          metrics: where requests are counted.
        """
        self._app, self._names, self._metrics = app, names, metrics
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        request = Request(scope)
        name = f"req-{secrets.token_hex(12)}"
        scope.setdefault("state", {})["id"] = name
        began, status = time.monotonic(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", name.encode())]
            await send(message)

        try:
            self._check(request)
            await self._app(scope, receive, sending)
        except ClientDisconnect:
            status = LEFT
        except Exception as error:
            if not isinstance(error, ApiError):
                log.exception("%s failed", name)
                error = ApiError(500, "internal", "the server failed; ask again, and tell the operator this request's id")  # fmt: skip
            if status:  # the answer has begun: all that is left is to end it
                log.error("%s ended in the middle: %s", name, error.message)
            else:
                answer = JSONResponse(error.body(name), error.status, headers=error.headers)
                await answer(scope, receive, sending)
        finally:
            seconds = time.monotonic() - began
            path = _known(scope["path"])
            self._metrics.requests.labels(path, status).inc()
            log.info("%s %s %s %d %.2f s", name, scope["method"], path, status, seconds)

    def _check(self, request: Request) -> None:
        """Who asks, and through which page.

        Raises:
          ApiError: 401 or 403.
        """
        host = request.headers.get("host", "")
        # Never by `request.url`, which frameworks put together from this header: it says who is called, and must not say what for.
        name, path = hostname(host), request.scope["path"]
        if self._names is not None and name not in self._names:
            # Somebody's page may make its own name lead here; without a key the name is all that tells it apart.
            raise ApiError(403, "wrong_host", f"this server is not called {name[:60]!r}; use localhost, or start it with a key")  # fmt: skip
        origin = request.headers.get("origin")
        changes = request.method not in ("GET", "HEAD")
        if changes and origin is not None and origin.partition("://")[2] != host:
            raise ApiError(403, "wrong_origin", "the page of another site may not ask here; use the server's own page or a client")  # fmt: skip
        if self._keys and path not in OPEN:
            scheme, _, key = request.headers.get("authorization", "").partition(" ")
            given = key.strip().encode()
            known = [hmac.compare_digest(given, own) for own in self._keys]  # always all of them
            if scheme.lower() != "bearer" or not any(known):
                what = "wrong" if given else "missing"
                raise ApiError(
                    401, "invalid_api_key", f"the API key is {what}; send it as 'Authorization: Bearer KEY'",
                    headers={"WWW-Authenticate": "Bearer"})  # fmt: skip


def hostname(host: str) -> str:
    """The name in a Host header, without its port; nothing where it is none."""
    try:
        return urllib.parse.urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _known(path: str) -> str:
    """The path for log and metrics: what a client made up is none of theirs, and ids are not either."""
    if path in _PATHS:
        return path
    parent = path.rpartition("/")[0]
    return f"{parent}/*" if parent in _PATHS - OPEN else "other"
