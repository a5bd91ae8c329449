"""Byte strings by key in a folder: the ground under the caches of clips and of vision features.

What can go wrong with a cache on disk never costs more than the cache: a torn or damaged file is noticed by its
checksum, removed and counted as a miss; a disk that is full or gone is counted, named once and left alone for a while.
Many processes of one machine may share a local folder: files appear whole (written aside, then renamed), and the size
limit is kept under a lock. A folder on an object store (gs://) has neither lock nor limit: objects appear whole there,
and a lifecycle rule of the bucket is what bounds it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
import struct
import threading
import time
import uuid
import zlib
from collections.abc import Iterator, Sequence

from absl import logging
from etils import epath

_HEADER = struct.Struct("<8sQI")  # magic, bytes of the payload, their CRC-32
_MAGIC = b"vo3blob1"
_TOTAL, _LOCK, _ASIDE = ".total", ".lock", "aside"
# Eviction goes on below the limit, so that it is not needed again at once.
_EVICT_TO = 0.9
# After a failed write the disk is left alone for so long; reading goes on.
_PAUSE_S = 60.0
# What a killed writer left behind is removed when it is older than this.
_ABANDONED_S = 3600.0
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclasses.dataclass
class StoreCounts:
    """What a store has done in this process.

    Attributes:
      hits, misses: of `get`.
      damaged: files with a wrong length or checksum, removed; they count as misses too.
      written: of `put`.
      evicted: files removed to keep the limit.
      failed: reads and writes that the file system refused.
      skipped: writes not tried, because an item exceeds the limit or the disk was full a moment ago.
    """

    hits: int = 0
    misses: int = 0
    damaged: int = 0
    written: int = 0
    evicted: int = 0
    failed: int = 0
    skipped: int = 0


class BlobStore:
    """A folder of checksummed files, least recently used ones leaving first.

    Picklable: a copy in another process works on the same folder and counts for itself.

    Attributes:
      root: the folder, made when it is missing.
      limit_bytes: most bytes the folder may take; None for no limit (the only choice on an object store).
      counts: what this process did.
    """

    def __init__(self, root: epath.PathLike, *, limit_bytes: int | None = None):
        """Makes the folder.

        Raises:
          ValueError: a limit that is not positive, or a limit on an object store.
          OSError: a local folder that cannot be made.
        """
        if limit_bytes is not None and limit_bytes <= 0:
            raise ValueError(f"limit_bytes must be positive or None, not {limit_bytes}")
        self.root = epath.Path(root)
        self.limit_bytes = limit_bytes
        self.counts = StoreCounts()
        self._local = "://" not in os.fspath(root)
        self._paused_until = 0.0
        self._named: set[str] = set()
        if not self._local and limit_bytes is not None:
            raise ValueError(
                f"{root}: a limit is kept on local disks only; set it to None and give the bucket a lifecycle rule"
            )
        if self._local:
            (self.root / _ASIDE).mkdir(parents=True, exist_ok=True)

    def __getstate__(self) -> dict:
        return {"root": os.fspath(self.root), "limit_bytes": self.limit_bytes}

    def __setstate__(self, state: dict) -> None:
        self.__init__(state["root"], limit_bytes=state["limit_bytes"])

    def path(self, key: str) -> epath.Path:
        """Where the bytes of a key are kept."""
        return self.root / key[:2] / key

    def get(self, key: str) -> memoryview | None:
        """The bytes put under the key, or None."""
        path = self.path(key)
        try:
            data = memoryview(path.read_bytes())
        except FileNotFoundError:
            self.counts.misses += 1
            return None
        except Exception as error:  # every storage backend has errors of its own
            self._refused("read", error)
            self.counts.misses += 1
            return None
        payload = _payload(data)
        if payload is None:
            self.counts.damaged += 1
            self.counts.misses += 1
            self._name(f"{path} is damaged or cut short; it is removed and will be made again")
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            return None
        self.counts.hits += 1
        if self._local:
            with contextlib.suppress(OSError):  # evicted meanwhile, or a read-only disk
                os.utime(path)
        return payload

    def put(self, key: str, parts: Sequence[bytes | memoryview]) -> bool:
        """Keeps the joined parts under the key; what is there already is replaced.

        Returns:
          Whether they were kept. A disk that is full or refuses is counted and named, never raised.
        """
        size = sum(memoryview(part).nbytes for part in parts)
        checksum = 0
        for part in parts:
            checksum = zlib.crc32(part, checksum)
        parts = [_HEADER.pack(_MAGIC, size, checksum), *parts]
        total = size + _HEADER.size
        too_large = self.limit_bytes is not None and total > self.limit_bytes
        if too_large:
            self._name(
                f"{self.root}: an item of {total} bytes exceeds the limit of {self.limit_bytes}"
            )
        if too_large or time.monotonic() < self._paused_until:
            self.counts.skipped += 1
            return False
        try:
            self._write(key, parts, total)
        except OSError as error:
            # Room can be made only where this store holds something that can go.
            if error.errno not in _FULL or not self._local or not self._retry(key, parts, total):
                self._refused("write", error)
                return False
        except Exception as error:
            if self._local:
                raise
            self._refused("write", error)
            return False
        self.counts.written += 1
        return True

    def size(self) -> int:
        """Bytes that the local folder takes, counted anew."""
        return sum(entry.size for entry in self._entries())

    # ------------------------------------------------------------ writing

    def _write(self, key: str, parts: Sequence[bytes | memoryview], size: int) -> None:
        path = self.path(key)
        if not self._local:
            path.write_bytes(b"".join(parts))
            return
        aside = self.root / _ASIDE / f"{os.getpid()}-{threading.get_ident()}-{uuid.uuid4().hex}"
        try:
            # Not synced to the disk: after a power cut the checksum tells what is missing.
            with open(aside, "wb") as file:
                for part in parts:
                    file.write(part)
            path.parent.mkdir(exist_ok=True)
            with self._locked():
                before = path.stat().length if path.exists() else 0
                os.replace(aside, path)
                self._grow(size - before)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(aside)
            raise

    def _retry(self, key: str, parts: Sequence[bytes | memoryview], size: int) -> bool:
        try:
            with self._locked():
                have = self.size()
                total, removed = self._evict(have - max(size, int(have * (1 - _EVICT_TO))))
                self._note(total)
            if not removed:
                return False
            self._write(key, parts, size)
        except OSError:
            return False
        return True

    def _refused(self, what: str, error: Exception) -> None:
        self.counts.failed += 1
        if what == "write":
            self._paused_until = time.monotonic() + _PAUSE_S
        self._name(
            f"{self.root}: cannot {what} ({type(error).__name__}: {error}); going on without. "
            "Free space on that disk, lower the cache's limit, or turn the cache off."
        )

    def _name(self, message: str) -> None:
        if message not in self._named:  # once each
            self._named.add(message)
            logging.warning("%s", message)

    # ------------------------------------------------------------ the limit, under the lock

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with open(self.root / _LOCK, "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _grow(self, size: int) -> None:
        if self.limit_bytes is None:
            return
        try:
            total = int((self.root / _TOTAL).read_text()) + size
        except (FileNotFoundError, ValueError):
            # The first writer, or a torn note: count, and sweep. What others are about to move into place is added when they do.
            total, _ = self._evict(self.limit_bytes)
        if total > self.limit_bytes:
            total, _ = self._evict(int(self.limit_bytes * _EVICT_TO))
        self._note(total)

    def _note(self, total: int) -> None:
        (self.root / _TOTAL).write_text(str(total))

    def _evict(self, target: int) -> tuple[int, int]:
        """Removes the files used longest ago until `target` bytes are left; returns the bytes left and the files removed."""
        entries = sorted(self._entries(), key=lambda entry: entry.used)
        total, removed = sum(entry.size for entry in entries if not entry.aside), 0
        now = time.time()
        for entry in entries:
            if entry.aside:
                if now - entry.used < _ABANDONED_S:
                    continue
            elif total <= target:
                continue
            with contextlib.suppress(FileNotFoundError):
                os.unlink(entry.path)
            total -= 0 if entry.aside else entry.size
            removed += 1
        self.counts.evicted += removed
        return total, removed

    def _entries(self) -> Iterator[_Entry]:
        with os.scandir(self.root) as folders:
            names = [folder.name for folder in folders if folder.is_dir()]
        for name in names:
            with os.scandir(os.path.join(self.root, name)) as files:
                for file in files:
                    try:
                        status = file.stat()
                    except FileNotFoundError:  # another process removed or renamed it
                        continue
                    yield _Entry(file.path, status.st_size, status.st_mtime, name == _ASIDE)


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A file: its bytes, when it was last used, and whether it is still being written."""

    path: str
    size: int
    used: float
    aside: bool


def _payload(data: memoryview) -> memoryview | None:
    if data.nbytes < _HEADER.size:
        return None
    magic, size, checksum = _HEADER.unpack(data[: _HEADER.size])
    payload = data[_HEADER.size :]
    if magic != _MAGIC or payload.nbytes != size or zlib.crc32(payload) != checksum:
        return None
    return payload
