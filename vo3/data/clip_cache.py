"""A disk cache of decoded, resized clips.

A clip is kept under a hash of what decides its pixels: the video's identity, the window, the strategy and the crop policy
(or, for an observation that is shown again, its frame numbers and size). The pixels are kept as they are, so that a clip
from the cache is bitwise the clip that decoding gave.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import struct
from collections.abc import Sequence
from typing import Any

import ml_dtypes  # noqa: F401  (numpy then knows bfloat16 by name)
import numpy as np
from etils import epath

from vo3.data.blob_store import BlobStore, StoreCounts
from vo3.data.clips import ClipRef
from vo3.trajectory import Observation
from vo3.video import Clip, CropPolicy
from vo3.video.source import plain_path

# Raised when the same video and policy give other pixels or frame numbers than before.
_VERSION = 2
_SAMPLES, _SAMPLE_BYTES = 8, 1 << 14
_LENGTH = struct.Struct("<I")


@dataclasses.dataclass(frozen=True)
class Entry:
    """An array with the observation it belongs to (index 0, no strategy: the same clip may stand anywhere).

    Attributes:
      observation: times, frame numbers, size and grid.
      array: frames uint8 [T, height, width, 3], or vision features [M, width].
    """

    observation: Observation
    array: np.ndarray


def pack_entry(entry: Entry) -> list[bytes | memoryview]:
    """The entry as byte strings to be joined."""
    array = np.ascontiguousarray(entry.array)
    head = {
        "observation": dataclasses.asdict(entry.observation),
        "dtype": array.dtype.name,
        "shape": array.shape,
    }
    text = json.dumps(head).encode()
    return [_LENGTH.pack(len(text)), text, memoryview(array.reshape(-1).view(np.uint8))]


def unpack_entry(data: memoryview) -> Entry:
    """Inverse of `pack_entry`; the array shares the memory of `data`."""
    (length,) = _LENGTH.unpack(data[: _LENGTH.size])
    body = _LENGTH.size + length
    head = json.loads(bytes(data[_LENGTH.size : body]))
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in head["observation"].items()}
    array = np.frombuffer(data[body:], np.uint8).view(np.dtype(head["dtype"]))
    return Entry(Observation(**fields), array.reshape(head["shape"]))


class ClipCache:
    """Clips by key, in a folder that the processes of a machine share; see `BlobStore`.

    Picklable, so that it can be handed to worker processes.
    """

    def __init__(self, root: epath.PathLike, *, limit_bytes: int | None = None):
        """`root`: a folder, or an address on an object store (which takes no limit). `limit_bytes`: the most it may take."""
        self._store = BlobStore(root, limit_bytes=limit_bytes)

    @property
    def counts(self) -> StoreCounts:
        """Hits, misses and the like, of this process."""
        return self._store.counts

    def get(self, key: str) -> Clip | None:
        """The clip kept under the key; its arrays are read-only."""
        data = self._store.get(key)
        if data is None:
            return None
        entry = unpack_entry(data)
        o = entry.observation
        return Clip(
            frames=entry.array,
            times=np.asarray(o.times, np.float64),
            indices=np.asarray(o.indices, np.int64),
            fps=o.fps,
            start=o.start,
            end=o.end,
            grid=o.grid,
            tokens=o.tokens,
        )

    def put(self, key: str, clip: Clip) -> bool:
        """Keeps the clip; whether that worked. A full disk is counted, not raised."""
        return self._store.put(key, pack_entry(Entry(clip.observation(0), clip.frames)))


def clip_key(ref: ClipRef, policy: CropPolicy) -> str:
    """A hash of everything that decides the pixels of a clip.

    Raises:
      OSError: the video cannot be read.
    """
    shown = ref.shown
    how: dict[str, Any]
    if shown is not None:
        how = {"indices": shown.indices, "size": (shown.height, shown.width)}
    else:
        how = {
            "window": ref.window,
            "sample": ref.sample,
            "clips": ref.clips if ref.sample == "old_quota" else 1,
            "policy": policy.to_json(),
        }
    fields = {"version": _VERSION, "video": identity(ref.video), "frame_fps": ref.frame_fps, **how}
    return _hash(json.dumps(fields, sort_keys=True).encode())


def identity(video: str | Sequence[str]) -> str:
    """What a video is, wherever it lies: a hash of its size and of samples of its bytes.

    A file is sampled at eight places, its head and tail among them, where containers keep their tables; a folder or list
    of frames by its names, sizes and eight of the files. A copy of a file elsewhere is the same video. What is not seen is
    a change in place of a few bytes between the samples that keeps the size. On an object store, where reads cost a round
    trip, it is the address, size and time of writing.

    Raises:
      OSError: the video cannot be read.
    """
    if not isinstance(video, str):
        return _frames_identity(tuple(video))
    if "://" in video and not video.startswith("file://"):
        path = epath.Path(video)
        if not path.suffix and path.is_dir():
            return _frames_identity(tuple(sorted(os.fspath(file) for file in path.iterdir())))
        status = path.stat()
        return _hash(f"{video} {status.length} {status.mtime}".encode())
    local = plain_path(video)
    status = os.stat(local)
    if os.path.isdir(local):
        return _frames_identity(tuple(sorted(entry.path for entry in os.scandir(local))))
    return _file_identity(local, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _file_identity(path: str, size: int, changed: int) -> str:
    del changed  # only tells when to look again
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    last = max(0, size - _SAMPLE_BYTES)
    with open(path, "rb") as file:
        for place in sorted({last * i // (_SAMPLES - 1) for i in range(_SAMPLES)}):
            file.seek(place)
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _frames_identity(files: tuple[str, ...]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    picks = {i * (len(files) - 1) // (_SAMPLES - 1) for i in range(_SAMPLES)} if files else set()
    for number, file in enumerate(files):
        digest.update(os.path.basename(file).encode())
        if "://" in file:
            if number in picks:
                digest.update(identity(file).encode())
            continue
        status = os.stat(file)
        digest.update(str(status.st_size).encode())
        if number in picks:
            digest.update(_file_identity(file, status.st_size, status.st_mtime_ns).encode())
    return digest.hexdigest()


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=20).hexdigest()
