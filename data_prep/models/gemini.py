"""Gemini through google-genai: the video file is uploaded once and asked about by time offsets."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import Any

from data_prep.models.base import Client, Media, ModelError, RawReply, Request, kind_of_status
from data_prep.models.openai import read_key
from data_prep.models.uploads import Uploads, gone

_TRANSPORTS = ("aiohttp", "httpx", "httpx2", "httpcore", "httpcore2")
# What reading the video's own file fails with; a connection fails with other numbers.
_STORAGE = (errno.ENOENT, errno.EACCES, errno.EIO, errno.ESTALE)


class GeminiClient(Client):
    """See the module's text. An upload lives as long as this client, if it is among those used last; the service keeps none for more than two days."""

    def __init__(
        self,
        *,
        model: str,
        api_key_env: str = "GEMINI_API_KEY",
        base_url: str = "",
        fps: float = 1.0,
        json_mode: str = "schema",
        uploads: int = 128,
    ):
        """Reads the key.

        Args:
          model: as the service names it.
          api_key_env: the environment variable that holds the key.
          base_url: empty for the service's own.
          fps: frames a second that the model sees.
          json_mode: see `OpenAIClient`.
          uploads: files kept at the service at once; as many as there are records under way, or theirs go up again for each stage.

        Raises:
          ModelError: no key.
        """
        self._key = read_key(api_key_env, base_url)
        self._model, self._fps, self._json_mode, self._base_url = model, fps, json_mode, base_url
        self._client: Any = None
        self._most, self._uploads = uploads, None

    def identity(self) -> list[Any]:
        """See `Client`."""
        return ["google-genai", self._model, self._fps, self._json_mode]

    async def complete(self, request: Request, *, key: str) -> RawReply:
        """See `Client`. The service has no idempotency keys: `key` is not sent.

        The upload is the service's matter and counts for the time limit of a try; it goes on meanwhile, and the next try
        waits for the same one.
        """
        from google.genai import errors

        self._open()
        try:
            reply = await self._ask(request)
            if reply is None:  # a run may be longer than an upload's life
                reply = await self._ask(request)
        except errors.APIError as error:
            raise self._failed(error) from None
        except Exception as error:
            # The service's client sits on aiohttp or httpx, whichever is installed; both have errors of their own.
            transport = type(error).__module__.split(".")[0] in _TRANSPORTS
            if not transport and not isinstance(error, OSError):
                raise
            if request.media is not None and not transport and error.errno in _STORAGE:
                raise ModelError(
                    "storage", f"{request.media.path} cannot be read: {error}"
                ) from None
            raise ModelError("server", self._clean(f"{type(error).__name__}: {error}")) from None
        if reply is None:
            raise ModelError("refused", f"the service does not find {request.media.video}, which was uploaded for this key just now")  # fmt: skip
        return self._reply(reply)

    async def _ask(self, request: Request) -> Any:
        """The service's reply; None where it no longer has the request's video, which is then forgotten here too."""
        from google.genai import errors, types

        media, parts, file = request.media, [], None
        async with contextlib.AsyncExitStack() as stack:
            if media is not None:
                _check(media)
                file = await stack.enter_async_context(
                    self._uploads.use(media.identity, media.path)
                )
                parts = self._parts(media, file)
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
            try:
                return await self._client.aio.models.generate_content(
                    model=self._model, contents=contents, config=config
                )
            except errors.APIError as error:
                if file is None or not gone(error, file):
                    raise
                self._uploads.forget(media.identity, file)
                return None

    async def close(self) -> None:
        """See `Client`."""
        if self._client is not None:
            await self._uploads.close()
            await self._client.aio.aclose()
            self._client = self._uploads = None

    def _open(self) -> None:
        if self._client is None:
            from google import genai
            from google.genai import types

            # Retries are the caller's: two layers of them would multiply.
            options = types.HttpOptions(base_url=self._base_url or None)
            self._client = genai.Client(api_key=self._key or "none", http_options=options)
            self._uploads = Uploads(self._client.aio.files, most=self._most)

    def _parts(self, media: Media, file: Any) -> list[Any]:
        from google.genai import types

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


def _check(media: Media) -> None:
    if os.path.isdir(media.path):
        raise ModelError("media", f"{media.video} is a folder; Gemini takes video files only")
    if not os.path.isfile(media.path):
        raise ModelError("storage", f"there is no file {media.path} on this machine")
