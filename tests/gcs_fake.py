"""A bucket in memory: `gs://` paths of epath, without a cloud."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, ClassVar
from unittest import mock

from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem


class FakeGcs(MemoryFileSystem):
    """What `gs://` means inside `fake_gcs`; buckets are folders."""

    protocol = ("gs", "gcs")
    cachable = False
    # Shared by all instances, as a bucket is; apart from the class it derives from.
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        inside = str(path).removeprefix("gs://").removeprefix("gcs://").strip("/")
        return f"/{inside}" if inside else ""


@contextlib.contextmanager
def fake_gcs() -> Iterator[dict[str, Any]]:
    """Inside, `epath.Path("gs://bucket/...")` reads and writes memory, empty at first; gives the files by path."""
    FakeGcs.store.clear()
    FakeGcs.pseudo_dirs[:] = [""]
    backend_class = type(backend.fsspec_backend)
    with mock.patch.object(backend_class, "_get_filesystem", return_value=FakeGcs()):
        yield FakeGcs.store
