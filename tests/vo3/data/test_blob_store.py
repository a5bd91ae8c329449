"""The store under the caches: what was put comes back whole or not at all, whatever happens to the disk."""

from __future__ import annotations

import builtins
import errno
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
import time
from typing import ClassVar

import numpy as np
import pytest

from vo3.data import blob_store
from vo3.data.blob_store import BlobStore

HEADER = 20


def fill(store: BlobStore, keys: str, size: int = 1000) -> None:
    """One item per letter, used in that order."""
    for age, key in enumerate(keys):
        assert store.put(key * 4, [bytes([ord(key)]) * size])
        moment = time.time() - 1000 + age
        os.utime(store.path(key * 4), (moment, moment))


def keys_of(store: BlobStore) -> str:
    return "".join(sorted(path.name[0] for path in pathlib.Path(store.root).glob("*/????")))


def test_what_was_put_comes_back(tmp_path):
    store = BlobStore(tmp_path)
    assert store.get("abcd") is None
    array = np.arange(5, dtype=np.float32)
    assert store.put("abcd", [b"12", memoryview(array.view(np.uint8)), b""])
    assert bytes(store.get("abcd")) == b"12" + array.tobytes()
    assert store.put("abcd", [b"new"])
    again = pickle.loads(pickle.dumps(store))
    assert bytes(again.get("abcd")) == b"new"
    assert (store.counts.hits, store.counts.misses, store.counts.written) == (1, 1, 2)
    assert again.counts.hits == 1
    assert list((tmp_path / "aside").iterdir()) == []


@pytest.mark.parametrize("cut", [0, 1, HEADER - 1, HEADER, HEADER + 5, -1])
def test_torn_files_are_misses(tmp_path, cut, caplog):
    store = BlobStore(tmp_path)
    store.put("abcd", [b"0123456789"])
    path = store.path("abcd")
    path.write_bytes(path.read_bytes()[:cut])
    assert store.get("abcd") is None
    assert store.counts.damaged == 1
    assert not path.exists()
    assert "damaged" in caplog.text and str(path) in caplog.text


@pytest.mark.parametrize("at", [0, 9, 17, HEADER, HEADER + 9])
def test_a_flipped_bit_is_a_miss(tmp_path, at):
    store = BlobStore(tmp_path)
    store.put("abcd", [b"0123456789"])
    data = bytearray(store.path("abcd").read_bytes())
    data[at] ^= 1
    store.path("abcd").write_bytes(data)
    assert store.get("abcd") is None


def test_the_limit_holds_and_the_least_used_go_first(tmp_path):
    store = BlobStore(tmp_path, limit_bytes=5 * (1000 + HEADER))
    fill(store, "abcde")
    assert keys_of(store) == "abcde"
    assert store.get("aaaa") is not None  # used again: now the youngest
    fill(store, "f")
    assert store.size() <= store.limit_bytes
    assert keys_of(store) == "adef"  # down to nine tenths
    assert store.counts.evicted == 2


def test_the_limit_holds_whatever_is_put(tmp_path):
    store = BlobStore(tmp_path, limit_bytes=20_000)
    rng = np.random.default_rng(0)
    for _ in range(60):
        store.put(f"{rng.integers(20):04d}", [bytes(int(rng.integers(1, 6000)))])
        assert store.size() <= 20_000
    assert store.counts.evicted > 10
    (tmp_path / ".total").write_text("torn")
    store.put("last", [bytes(100)])
    assert int((tmp_path / ".total").read_text()) == store.size()


def test_what_exceeds_the_limit_alone_is_not_tried(tmp_path, caplog):
    store = BlobStore(tmp_path, limit_bytes=100)
    assert not store.put("abcd", [bytes(101)])
    assert store.counts.skipped == 1
    assert store.size() == 0
    assert "exceeds the limit of 100" in caplog.text


def test_what_a_killed_writer_left_is_removed(tmp_path):
    store = BlobStore(tmp_path, limit_bytes=5000)
    old, young = tmp_path / "aside" / "old", tmp_path / "aside" / "young"
    for path in (old, young):
        path.write_bytes(bytes(1500))
    os.utime(old, (time.time() - 7200,) * 2)
    fill(store, "abc", size=1000)
    assert not old.exists()
    assert young.exists()


@pytest.mark.parametrize(
    ("limit", "says"), [(0, "must be positive"), (-3, "must be positive"), (None, None)]
)
def test_limits(tmp_path, limit, says):
    if says is None:
        assert BlobStore(tmp_path, limit_bytes=limit).limit_bytes is None
        return
    with pytest.raises(ValueError, match=says):
        BlobStore(tmp_path, limit_bytes=limit)


def test_an_object_store_takes_no_limit():
    with pytest.raises(ValueError, match="lifecycle rule"):
        BlobStore("gs://bucket/cache", limit_bytes=10)


# ---------------------------------------------------------------- disks that are full or gone


class SmallDisk:
    """`open` on a disk that holds so many bytes."""

    def __init__(self, folder: pathlib.Path, room: int):
        self.folder, self.room = folder, room

    def __call__(self, path, mode="r"):
        file = builtins.open(path, mode, buffering=0 if "b" in mode else -1)  # noqa: SIM115
        if "w" in mode and "aside" in str(path):
            return _Limited(file, self)
        return file

    def used(self) -> int:
        return sum(p.stat().st_size for p in self.folder.rglob("*") if p.is_file())


class _Limited:
    def __init__(self, file, disk):
        self.file, self.disk = file, disk

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, data):
        if self.disk.used() + len(data) > self.disk.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.file.write(data)


def test_a_full_disk_makes_room_by_eviction(tmp_path, monkeypatch):
    store = BlobStore(tmp_path)
    fill(store, "abcd")
    monkeypatch.setattr(blob_store, "open", SmallDisk(tmp_path, 4500), raising=False)
    assert store.put("eeee", [bytes(1000)])
    assert keys_of(store) == "bcde"
    assert store.counts.failed == 0
    assert bytes(store.get("eeee")) == bytes(1000)


def test_a_disk_full_of_other_things_is_left_alone(tmp_path, monkeypatch, caplog):
    (tmp_path / "cache").mkdir()
    (tmp_path / "other").write_bytes(bytes(5000))
    store = BlobStore(tmp_path / "cache")
    monkeypatch.setattr(blob_store, "open", SmallDisk(tmp_path, 5500), raising=False)
    for _ in range(3):
        assert not store.put("eeee", [bytes(1000)])
    assert (store.counts.failed, store.counts.skipped) == (1, 2)  # tried once, then left alone
    assert list((tmp_path / "cache" / "aside").iterdir()) == []
    assert store.get("eeee") is None
    assert caplog.text.count("No space left") == 1
    assert "turn the cache off" in caplog.text
    monkeypatch.setattr(blob_store, "_PAUSE_S", 0.0)
    store._paused_until = 0.0
    (tmp_path / "other").unlink()
    assert store.put("eeee", [bytes(1000)])


def test_a_file_size_limit_of_the_system(tmp_path):
    """The kernel's own refusal, not a fake's."""
    code = (
        "import resource, sys; from vo3.data.blob_store import BlobStore\n"
        "store = BlobStore(sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "print(store.put('small', [bytes(100)]), store.put('large', [bytes(10000)]), store.counts.failed)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "False", "1"]


def test_a_disk_that_is_gone(tmp_path):
    store = BlobStore(tmp_path / "cache")
    store.put("abcd", [b"1"])
    shutil.rmtree(tmp_path / "cache")
    assert store.get("abcd") is None
    assert not store.put("abcd", [b"1"])
    assert store.counts.failed == 1


# ---------------------------------------------------------------- several processes, object stores

_WRITER = """
import random, sys
from vo3.data.blob_store import BlobStore
store = BlobStore(sys.argv[1], limit_bytes=60_000)
rng = random.Random(int(sys.argv[2]))
for _ in range(150):
    key = f"{rng.randrange(12):04d}"
    kept = store.get(key)
    assert kept is None or bytes(kept) == key.encode() * 2000, key
    assert store.put(key, [key.encode() * 2000])
assert store.counts.damaged == 0
"""


def test_several_writers_share_a_folder(tmp_path):
    writers = [
        subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path), str(seed)])
        for seed in range(3)
    ]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    store = BlobStore(tmp_path, limit_bytes=60_000)
    assert 0 < store.size() <= 60_000
    assert int((tmp_path / ".total").read_text()) == store.size()


def test_a_count_anew_leaves_out_what_others_are_writing(tmp_path):
    (tmp_path / "aside").mkdir()
    (tmp_path / "aside" / "other").write_bytes(b"x" * 5000)
    store = BlobStore(tmp_path, limit_bytes=60_000)
    assert store.put("0001", [b"y" * 2000])
    assert int((tmp_path / ".total").read_text()) == store.size() - 5000


class Bucket:
    """An object store in memory, as far as the store uses epath."""

    objects: ClassVar[dict[str, bytes]] = {}

    def __init__(self, path):
        self.path = os.fspath(path) if not isinstance(path, Bucket) else path.path

    def __fspath__(self):
        return self.path

    __str__ = __fspath__

    def __truediv__(self, name):
        return Bucket(f"{self.path}/{name}")

    def read_bytes(self):
        if self.path not in self.objects:
            raise FileNotFoundError(self.path)
        if self.objects[self.path] == b"down":
            raise ConnectionError("no route to the bucket")
        return self.objects[self.path]

    def write_bytes(self, data):
        if "refused" in self.path:
            raise PermissionError(self.path)
        self.objects[self.path] = data

    def unlink(self, missing_ok=False):
        self.objects.pop(self.path, None)


def test_an_object_store(monkeypatch):
    monkeypatch.setattr(blob_store.epath, "Path", Bucket)
    monkeypatch.setattr(Bucket, "objects", {})
    store = BlobStore("gs://bucket/cache")
    assert store.get("abcd") is None
    assert store.put("abcd", [b"12", b"34"])
    assert bytes(store.get("abcd")) == b"1234"
    Bucket.objects["gs://bucket/cache/ab/abcd"] = b"torn"
    assert store.get("abcd") is None and store.counts.damaged == 1
    assert "gs://bucket/cache/ab/abcd" not in Bucket.objects
    Bucket.objects["gs://bucket/cache/ab/abcd"] = b"down"
    assert store.get("abcd") is None and store.counts.failed == 1
    assert not store.put("refused", [b"1"]) and store.counts.failed == 2
