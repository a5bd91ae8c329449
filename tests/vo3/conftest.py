"""A bucket in memory behind gs:// paths."""

from __future__ import annotations

import pytest
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem


class Bucket(MemoryFileSystem):
    """fsspec's file system in memory, under the names of Google's."""

    protocol = ("gs", "gcs")

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("gs://"))

    def glob(self, path, **options):
        return [found.lstrip("/") for found in super().glob(path, **options)]


@pytest.fixture
def bucket(monkeypatch):
    """An empty bucket; every gs:// path of the test leads to it."""
    files = Bucket(skip_instance_cache=True)
    files.store, files.pseudo_dirs = {}, [""]
    monkeypatch.setattr(backend._FileSystemSpecBackend, "_get_filesystem", lambda self, name: files)
    return files
