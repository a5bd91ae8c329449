"""Uploaded videos: kept in a folder of their own until the server ends, the oldest first to go where there are too many bytes.

What a question holds stays until it is done with, deleted or not: its video is opened anew for every look.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import re
import secrets
import tempfile
import threading
import time
from typing import Any, BinaryIO

from vo3.serve.errors import ApiError, shown, too_large
from vo3.serve.settings import Limits

_ID = re.compile(r"file-[0-9a-f]{32}\Z")


@dataclasses.dataclass
class Upload:
    """An uploaded file.

    Attributes:
      id: that it is asked for by.
      name: what its owner calls it.
      path: where it lies.
      size: bytes.
      created: seconds of the epoch.
      purpose: as given.
    """

    id: str
    name: str
    path: str
    size: int
    created: int
    purpose: str

    def to_json(self) -> dict[str, Any]:
        """As OpenAI's clients read it."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.size,
            "created_at": self.created,
            "filename": self.name,
            "purpose": self.purpose,
            "status": "processed",
        }


class Uploads:
    """The uploads of a server. Ids cannot be guessed: who has one may use the file."""

    def __init__(self, limits: Limits):
        self._limits = limits
        self._folder = tempfile.TemporaryDirectory(prefix="vo3-uploads-")
        self._files: collections.OrderedDict[str, Upload] = collections.OrderedDict()
        self._holds: dict[Any, Upload] = {}  # by holder
        self._going: set[str] = set()  # deleted, and still held
        self._lock = threading.Lock()

    def write(self) -> tuple[str, BinaryIO]:
        """A new id, and the file to fill."""
        name = f"file-{secrets.token_hex(16)}"
        return name, open(os.path.join(self._folder.name, name), "wb")

    def drop(self, name: str) -> None:
        """Removes what was written for an id that is not kept."""
        os.unlink(os.path.join(self._folder.name, name))

    def keep(self, name: str, filename: str, purpose: str) -> Upload:
        """Keeps what was written; the oldest uploads that no question holds go where the limit is passed.

        Raises:
          ApiError: it is empty or too large, or there is no room beside what questions hold.
        """
        path = os.path.join(self._folder.name, name)
        size = os.path.getsize(path)
        if not size:
            self.drop(name)
            raise ApiError(400, "empty_file", f"{shown(filename)} has no bytes; upload the video again")  # fmt: skip
        if size > self._limits.upload:
            self.drop(name)
            raise too_large(shown(filename), self._limits.upload, "shorten it or lower its quality")
        found = Upload(name, filename[:200], path, size, int(time.time()), purpose[:64])
        with self._lock:
            try:
                self._make_room(size)
            except ApiError:
                self.drop(name)
                raise
            self._files[name] = found
        return found

    def _make_room(self, size: int) -> None:
        """For so many bytes. The first may always come, however large."""
        limit = self._limits.uploads
        held = {file.id: file.size for file in self._holds.values()}
        if held and sum(held.values()) + size > limit:
            raise ApiError(429, "uploads_busy", "the uploads that are being asked about leave no room for another; try again in 5 s", headers={"Retry-After": "5"})  # fmt: skip
        free = [file for name, file in self._files.items() if name not in held]
        total = sum(held.values()) + sum(file.size for file in free) + size
        for file in free:
            if total <= limit:
                break
            self._remove(file.id)
            total -= file.size

    @staticmethod
    def is_id(name: str) -> bool:
        """Whether a text has the form of an upload's id."""
        return _ID.match(name) is not None

    def get(self, name: str, *, param: str | None = None) -> Upload:
        """The upload with this id.

        Raises:
          ApiError: there is none, or none any more.
        """
        with self._lock:
            self._check(name, param)
            self._files.move_to_end(name)
            return self._files[name]

    def hold(self, name: str, holder: Any, *, param: str | None = None) -> None:
        """Keeps an upload's file, whatever becomes of the upload, until the holder lets go; see `get`."""
        with self._lock:
            self._check(name, param)
            self._holds[holder] = self._files[name]

    def let_go(self, holder: Any) -> None:
        """The holder is done with its upload; may be called again, from any thread."""
        with self._lock:
            found = self._holds.pop(holder, None)
            if found is not None and found.id in self._going and not self._is_held(found):
                self._going.remove(found.id)
                with contextlib.suppress(FileNotFoundError):  # the server has ended
                    os.unlink(found.path)

    def remove(self, name: str) -> None:
        """Deletes an upload, its file once no question holds it; see `get`."""
        with self._lock:
            self._check(name, None)
            self._remove(name)

    def close(self) -> None:
        """Deletes all of them."""
        self._folder.cleanup()

    def _check(self, name: str, param: str | None) -> None:
        if name not in self._files:
            raise ApiError(404, "file_not_found", f"there is no upload {shown(name)}, or none any more; upload the file again", param=param)  # fmt: skip

    def _remove(self, name: str) -> None:
        found = self._files.pop(name)
        if self._is_held(found):
            self._going.add(name)
        else:
            os.unlink(found.path)

    def _is_held(self, upload: Upload) -> bool:
        return any(held is upload for held in self._holds.values())
