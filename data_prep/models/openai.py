"""Any endpoint that speaks OpenAI's chat completions (vLLM, SGLang, llama.cpp and the companies'); videos go as frames.

Plain HTTP, no SDK: what is sent is all here. The key is read from an environment variable, lives in one header, and is
struck out of every error text.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp

from data_prep.models import frames
from data_prep.models.base import TRANSIENT, Client, ModelError, RawReply, Request, kind_of_status


def read_key(variable: str, base_url: str) -> str:
    """The API key from its environment variable; empty is fine for an endpoint on this machine.

    Raises:
      ModelError: kind `auth`: the variable is not set.
    """
    key = os.environ.get(variable, "").strip() if variable else ""
    if not key and not any(
        host in base_url for host in ("://localhost", "://127.0.0.1", "://[::1]")
    ):
        raise ModelError(
            "auth",
            f"no API key: the environment variable {variable or '(none named)'} is not set; "
            f"export it, or name another with config.model.api_key_env",
        )
    return key


class OpenAIClient(Client):
    """See the module's text."""

    def __init__(
        self,
        *,
        model: str,
        base_url: str = "https://api.openai.com/v1",
        api_key_env: str = "OPENAI_API_KEY",
        json_mode: str = "schema",
        frame_settings: frames.FrameSettings = frames.FrameSettings(),  # noqa: B008
        connections: int = 64,
        extra: dict[str, Any] | None = None,
    ):
        """Reads the key.

        Args:
          model: as the endpoint names it.
          base_url: up to and including the version, as in http://localhost:8000/v1.
          api_key_env: the environment variable that holds the key.
          json_mode: `schema` sends the reply's schema, `object` asks for any JSON object, `none` asks in words only.
          frame_settings: how videos are sent.
          connections: kept open at most.
          extra: further fields of the request's body.

        Raises:
          ModelError: no key for an endpoint that is not on this machine.
        """
        if json_mode not in ("schema", "object", "none"):
            raise ValueError(f"json_mode is {json_mode!r}; one of schema, object, none")
        self._model, self._url = model, base_url.rstrip("/") + "/chat/completions"
        self._key = read_key(api_key_env, base_url)
        self._json_mode, self._frames, self._extra = json_mode, frame_settings, extra or {}
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None
        self._decoders: ThreadPoolExecutor | None = None

    def identity(self) -> list[Any]:
        """See `Client`. The address is left out: the same model served elsewhere gives the same replies."""
        settings = vars(self._frames)
        return ["openai", self._model, self._json_mode, dict(settings), self._extra]

    async def prepare(self, request: Request, *, key: str) -> Callable[[], Awaitable[RawReply]]:
        """See `Client`. The body with its frames is made on threads of their own: the loop's look up addresses too."""
        if request.media is None:
            return functools.partial(self._send, self._body(request), key)
        if self._decoders is None:
            self._decoders = ThreadPoolExecutor(frames.AT_ONCE, thread_name_prefix="frames")
        loop = asyncio.get_running_loop()
        body = await loop.run_in_executor(self._decoders, self._body, request)
        return functools.partial(self._send, body, key)

    async def complete(self, request: Request, *, key: str) -> RawReply:
        """See `Client`."""
        send = await self.prepare(request, key=key)
        return await send()

    async def _send(self, body: bytes, key: str) -> RawReply:
        headers = {"Content-Type": "application/json", "Idempotency-Key": key}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        if self._session is None:
            # The time limit is the caller's; the connector must not add a limit of its own.
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._connections),
                timeout=aiohttp.ClientTimeout(total=None),
            )
        try:
            async with self._session.post(self._url, data=body, headers=headers) as response:
                text = await response.text()
                if response.status != 200:
                    raise self._refused(response.status, response.headers, text)
        except (aiohttp.ClientError, ConnectionError, UnicodeDecodeError) as error:
            raise ModelError("server", self._clean(f"{type(error).__name__}: {error}")) from None
        return self._reply(text)

    async def close(self) -> None:
        """See `Client`."""
        if self._decoders is not None:
            self._decoders.shutdown(wait=False, cancel_futures=True)
            self._decoders = None
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _body(self, request: Request) -> bytes:
        content: list[dict[str, Any]] = []
        if request.media is not None:
            for shown in frames.read(request.media, self._frames):
                content.append({"type": "text", "text": frames.label(shown)})
                url = f"data:image/jpeg;base64,{shown.jpeg}"
                content.append({"type": "image_url", "image_url": {"url": url}})
        content.append({"type": "text", "text": request.text})
        messages: list[dict[str, Any]] = [
            {"role": "system", "content": request.system},
            {"role": "user", "content": content},
        ]
        messages += [{"role": role, "content": text} for role, text in request.history]
        body: dict[str, Any] = {
            "model": self._model,
            "messages": messages,
            "temperature": request.temperature,
            "max_tokens": request.max_tokens,
            "seed": request.draw,
            **self._extra,
        }
        if self._json_mode == "schema":
            form = {"name": request.stage, "schema": dict(request.schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        elif self._json_mode == "object":
            body["response_format"] = {"type": "json_object"}
        return json.dumps(body).encode()

    def _reply(self, text: str) -> RawReply:
        """Reads the endpoint's own JSON; half of it is a server's error, to be tried again."""
        try:
            data = json.loads(text)
            choice = data["choices"][0]
            content = choice["message"].get("content") or ""
            if isinstance(content, list):  # parts, as some servers send
                content = "".join(part.get("text", "") for part in content)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise ModelError("server", f"half a reply: {type(error).__name__}") from None
        if choice.get("finish_reason") == "content_filter":
            raise ModelError("request", "the endpoint's filter withheld the reply")
        usage = data.get("usage") or {}
        return RawReply(
            text=content,
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            reply_tokens=int(usage.get("completion_tokens") or len(content) // 4),
            cut=choice.get("finish_reason") == "length",
            model=str(data.get("model") or self._model),
        )

    def _refused(self, status: int, headers: Any, text: str) -> ModelError:
        message = self._clean(f"HTTP {status}: {text.strip()[:200]}")
        kind = kind_of_status(status)
        after = _retry_after(headers) if kind in TRANSIENT else None
        return ModelError(kind, message, retry_after=after)

    def _clean(self, message: str) -> str:
        return message.replace(self._key, "***") if self._key else message


def _retry_after(headers: Any) -> float | None:
    """Seconds of a Retry-After header; None for the form with a date, and when there is none."""
    try:
        seconds = float(headers.get("Retry-After", ""))
    except ValueError:
        return None
    return seconds if 0 <= seconds < 3600 else None
