"""Uploaded videos: kept in a folder of their own until the server ends, the oldest first to go where there are too many bytes."""

from __future__ import annotations

import collections
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
        self._lock = threading.Lock()

    def write(self) -> tuple[str, BinaryIO]:
        """A new id, and the file to fill."""
        name = f"file-{secrets.token_hex(16)}"
        return name, open(os.path.join(self._folder.name, name), "wb")

    def drop(self, name: str) -> None:
        """Removes what was written for an id that is not kept."""
        os.unlink(os.path.join(self._folder.name, name))

    def keep(self, name: str, filename: str, purpose: str) -> Upload:
        """Keeps what was written; the oldest uploads go where the limit is passed.

        Raises:
          ApiError: it is empty.
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
            self._files[name] = found
            while sum(file.size for file in self._files.values()) > self._limits.uploads:
                if len(self._files) == 1:
                    break
                self._remove(next(iter(self._files)))
        return found

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

    def find(self, name: str, *, param: str) -> tuple[str, str]:
        """(name, path) of an upload; see `get`."""
        found = self.get(name, param=param)
        return found.name, found.path

    def remove(self, name: str) -> None:
        """Deletes an upload; see `get`."""
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
        # An open file stays readable until its reader is done.
        os.unlink(self._files.pop(name).path)
