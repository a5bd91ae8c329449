"""Videos at a service that files are uploaded to: each goes up once, and goes when it is no longer asked about."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
from collections.abc import AsyncIterator
from typing import Any

from data_prep.models.base import ModelError

log = logging.getLogger(__name__)

# An upload is processed before it can be asked about.
_POLL = 2.0  # seconds
# The service keeps 20 GB for a project, those of other runs included.
_ROOM = 12 * 2**30
_CLOSE_S = 30.0


@dataclasses.dataclass
class _Upload:
    """Attributes: `task` gives the service's file, of `size` bytes; `users` calls ask about it now."""

    task: asyncio.Task[Any]
    size: int
    users: int = 0


def gone(error: Any, file: Any) -> bool:
    """Whether an `APIError` says that an upload is not there: deleted, expired after two days, or another key's, which it does not tell apart."""
    name = file.name.removeprefix("files/")
    return error.code in (403, 404) and name in (error.message or "")


class Uploads:
    """Belongs to one event loop. Beyond `most` files, or `_ROOM`, the least recently used ones that no call is about are deleted."""

    def __init__(self, service: Any, *, most: int):
        """`service`: the client's `aio.files`."""
        self._service, self._most = service, most
        self._uploads: dict[str, _Upload] = {}  # the least recently used first
        self._deleting: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def use(self, identity: str, path: str) -> AsyncIterator[Any]:
        """The service's file of a video, which stays there inside.

        Raises:
          ModelError: kind `media`: the service cannot process it; `server`: it went while it was processed.
          APIError: of the service.
        """
        upload = self._uploads.pop(identity, None)
        if upload is None or _failed(upload.task):
            size = os.path.getsize(path)
            upload = _Upload(asyncio.create_task(self._upload(path)), size)
        self._uploads[identity] = upload
        upload.users += 1
        try:
            # One caller's time limit must not end the upload that the others wait for.
            yield await asyncio.shield(upload.task)
        finally:
            upload.users -= 1
            self._trim()

    def forget(self, identity: str, file: Any) -> None:
        """The service has this file no more: the next call uploads it again. Another upload of the video, by a call that was told earlier, stays."""
        upload = self._uploads.get(identity)
        if upload is not None and upload.task.done() and not _failed(upload.task) and upload.task.result() is file:  # fmt: skip
            del self._uploads[identity]

    async def close(self) -> None:
        """Deletes what is left. What cannot be deleted in time expires by itself."""
        for upload in self._uploads.values():
            upload.task.cancel()  # one that is under way deletes its file itself
            self._drop(upload)
        self._uploads.clear()
        if self._deleting:
            await asyncio.wait(self._deleting, timeout=_CLOSE_S)

    def _trim(self) -> None:
        held = sum(upload.size for upload in self._uploads.values())
        for identity, upload in list(self._uploads.items()):
            if len(self._uploads) <= self._most and held <= _ROOM:
                return
            if not upload.users and upload.task.done():
                del self._uploads[identity]
                held -= upload.size
                self._drop(upload)

    def _drop(self, upload: _Upload) -> None:
        """Deletes it behind the back of whoever was served: no call waits for that."""
        task = asyncio.create_task(self._settle(upload))
        self._deleting.add(task)
        task.add_done_callback(self._deleting.discard)

    async def _settle(self, upload: _Upload) -> None:
        await asyncio.wait([upload.task])
        if not _failed(upload.task):
            await self._delete(upload.task.result())

    async def _upload(self, path: str) -> Any:
        from google.genai import errors

        file = await self._service.upload(file=path)
        try:
            now = file
            while now.state is not None and now.state.name == "PROCESSING":
                await asyncio.sleep(_POLL)
                now = await self._service.get(name=file.name)
            if now.state is not None and now.state.name == "FAILED":
                raise ModelError("media", f"the service could not process {os.path.basename(path)}")
        except BaseException as error:
            await self._delete(file)
            if isinstance(error, errors.APIError) and gone(error, file):
                raise ModelError("server", f"the upload of {os.path.basename(path)} went while it was processed") from None  # fmt: skip
            raise
        return now

    async def _delete(self, file: Any) -> None:
        try:
            await self._service.delete(name=file.name)
        except (
            Exception
        ) as error:  # whatever it is, no row may be lost to it; its text may hold the key
            log.warning("the upload %s stays at the service until it expires: %s", file.name, type(error).__name__)  # fmt: skip


def _failed(task: asyncio.Task[Any]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)
