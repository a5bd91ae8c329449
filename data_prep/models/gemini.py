"""Gemini through google-genai: the video file is uploaded once and asked about by time offsets."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from data_prep.models.base import Client, Media, ModelError, RawReply, Request, kind_of_status
from data_prep.models.openai import read_key

# An upload is processed before it can be asked about.
_POLL = 2.0  # seconds
_TRANSPORTS = ("aiohttp", "httpx", "httpx2", "httpcore", "httpcore2")


class GeminiClient(Client):
    """See the module's text. An upload lives as long as this client; the service keeps it for two days."""

    def __init__(
        self,
        *,
        model: str,
        api_key_env: str = "GEMINI_API_KEY",
        base_url: str = "",
        fps: float = 1.0,
        json_mode: str = "schema",
    ):
        """Reads the key.

        Raises:
          ModelError: no key.
        """
        self._key = read_key(api_key_env, base_url)
        self._model, self._fps, self._json_mode, self._base_url = model, fps, json_mode, base_url
        self._client: Any = None
        self._uploads: dict[str, asyncio.Task[Any]] = {}

    def identity(self) -> list[Any]:
        """See `Client`."""
        return ["google-genai", self._model, self._fps, self._json_mode]

    async def complete(self, request: Request, *, key: str) -> RawReply:
        """See `Client`. The service has no idempotency keys: `key` is not sent."""
        from google.genai import errors, types

        self._open()
        parts = []
        try:
            if request.media is not None:
                parts = await self._media(request.media)
            contents = [types.Content(role="user", parts=[*parts, types.Part(text=request.text)])]
            for role, text in request.history:
                name = "model" if role == "assistant" else "user"
                contents.append(types.Content(role=name, parts=[types.Part(text=text)]))
            config = types.GenerateContentConfig(
                system_instruction=request.system,
                temperature=request.temperature,
                max_output_tokens=request.max_tokens,
                seed=request.draw,
                response_mime_type=None if self._json_mode == "none" else "application/json",
                response_json_schema=dict(request.schema) if self._json_mode == "schema" else None,
            )
            reply = await self._client.aio.models.generate_content(
                model=self._model, contents=contents, config=config
            )
        except errors.APIError as error:
            raise self._failed(error) from None
        except Exception as error:
            # The service's client sits on aiohttp or httpx, whichever is installed; both have errors of their own.
            transport = type(error).__module__.split(".")[0] in _TRANSPORTS
            if not transport and not isinstance(error, OSError):
                raise
            raise ModelError("server", self._clean(f"{type(error).__name__}: {error}")) from None
        return self._reply(reply)

    async def close(self) -> None:
        """See `Client`."""
        for task in self._uploads.values():
            task.cancel()
        self._uploads.clear()
        if self._client is not None:
            await self._client.aio.aclose()
            self._client = None

    def _open(self) -> None:
        if self._client is None:
            from google import genai
            from google.genai import types

            # Retries are the caller's: two layers of them would multiply.
            options = types.HttpOptions(base_url=self._base_url or None)
            self._client = genai.Client(api_key=self._key or "none", http_options=options)

    async def _media(self, media: Media) -> list[Any]:
        from google.genai import types

        if os.path.isdir(media.path):
            raise ModelError("media", f"{media.video} is a folder; Gemini takes video files only")
        if not os.path.isfile(media.path):
            raise ModelError("storage", f"there is no file {media.path} on this machine")
        task = self._uploads.get(media.identity)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = self._uploads[media.identity] = asyncio.create_task(self._upload(media.path))
        # One caller's time limit must not end the upload that the others wait for.
        file = await asyncio.shield(task)
        data = types.FileData(file_uri=file.uri, mime_type=file.mime_type)
        if not media.windows:
            window = types.VideoMetadata(fps=self._fps)
            return [types.Part(file_data=data, video_metadata=window)]
        return [
            types.Part(
                file_data=data,
                video_metadata=types.VideoMetadata(
                    start_offset=f"{start:.3f}s", end_offset=f"{end:.3f}s", fps=self._fps
                ),
            )
            for start, end in media.windows
        ]

    async def _upload(self, path: str) -> Any:
        file = await self._client.aio.files.upload(file=path)
        while file.state is not None and file.state.name == "PROCESSING":
            await asyncio.sleep(_POLL)
            file = await self._client.aio.files.get(name=file.name)
        if file.state is not None and file.state.name == "FAILED":
            raise ModelError("media", f"the service could not process {os.path.basename(path)}")
        return file

    def _reply(self, reply: Any) -> RawReply:
        if not reply.candidates:
            raise ModelError("request", "the endpoint's filter withheld the reply")
        finish = reply.candidates[0].finish_reason
        usage = reply.usage_metadata
        thoughts = (usage.thoughts_token_count or 0) if usage else 0
        return RawReply(
            text=reply.text or "",
            prompt_tokens=(usage.prompt_token_count or 0) if usage else 0,
            reply_tokens=((usage.candidates_token_count or 0) if usage else 0) + thoughts,
            cut=finish is not None and finish.name == "MAX_TOKENS",
            model=reply.model_version or self._model,
        )

    def _failed(self, error: Any) -> ModelError:
        message = self._clean(f"HTTP {error.code}: {error.message}"[:200])
        if "API key" in (error.message or ""):
            return ModelError("auth", message)
        # 400 too, where no request is answered from this place or without billing.
        if error.status == "FAILED_PRECONDITION":
            return ModelError("refused", message)
        return ModelError(kind_of_status(error.code), message)

    def _clean(self, message: str) -> str:
        return message.replace(self._key, "***") if self._key else message
