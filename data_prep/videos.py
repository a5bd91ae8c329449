"""Video files below a root: paths that may not leave it, what identifies a file's content, and its grid."""

from __future__ import annotations

import functools
import hashlib
import os

from etils import epath

from data_prep.models.base import ModelError
from data_prep.schema import VideoInfo
from vo3.video import VideoCrop, VideoError
from vo3.video.errors import STORAGE

_SAMPLE = 1 << 16  # bytes hashed at each end of a file


class PathError(ValueError):
    """A video path that leaves its root."""


def below(root: str, video: str) -> str:
    """The path of `video` below `root`.

    Raises:
      PathError: the path is empty or leads out of the root, by `..`, by being absolute, or through a link.
    """
    if not video or "\0" in video:
        raise PathError(f"the video path {video!r} is empty or holds a NUL; fix the row")
    if "://" in root:
        parts = video.replace("\\", "/").split("/")
        if video.startswith("/") or "://" in video or ".." in parts:
            raise PathError(f"the video path {video!r} leaves the root {root}")
        return os.fspath(epath.Path(root) / video)
    base = os.path.realpath(root or ".")
    path = os.path.realpath(os.path.join(base, video))
    if path != base and not path.startswith(base.rstrip(os.sep) + os.sep):
        raise PathError(f"the video path {video!r} leaves the root {root or '.'}")
    return path


def identity(path: str) -> str:
    """Names the content of a file: its size and the hash of its two ends; of a folder of frames, all names and sizes and the ends of the first, middle and last.

    Empty where there is no file (an oracle needs none).

    Raises:
      ModelError: kind `storage`: it is there and cannot be read.
    """
    try:
        return _identity(path)
    except FileNotFoundError:
        return ""
    except Exception as error:  # object stores have errors of their own
        raise ModelError(
            "storage", f"reading {path} failed: {type(error).__name__}: {error}"
        ) from error


# Errors are not kept: a file that was not there may be there when it is asked about again.
@functools.lru_cache(maxsize=4096)
def _identity(path: str) -> str:
    file = epath.Path(path)
    if not file.exists():
        raise FileNotFoundError(path)
    if file.is_dir():
        frames = sorted(file.iterdir())
        parts = [f"{p.name} {p.stat().length}" for p in frames]
        parts += [
            _ends(frames[i]) for i in sorted({0, len(frames) // 2, len(frames) - 1}) if frames
        ]
        return "frames-" + hashlib.blake2b("\n".join(parts).encode(), digest_size=12).hexdigest()
    return _ends(file)


def _ends(file: epath.Path) -> str:
    with file.open("rb") as stream:
        head = stream.read(_SAMPLE)
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - _SAMPLE))
        tail = stream.read(_SAMPLE)
    digest = hashlib.blake2b(head + tail, digest_size=12).hexdigest()
    return f"{size}-{digest}"


@functools.lru_cache(maxsize=4096)
def probe(path: str, frame_fps: float | None = None) -> VideoInfo:
    """The grid of a video file.

    Raises:
      VideoError: it is no video that can be used.
      ModelError: kind `storage`: it is not there, or its storage fails or stalls.
    """
    try:
        video = VideoCrop(path, frame_fps=frame_fps)
    except VideoError as error:
        if error.kind not in STORAGE:
            raise
        raise ModelError("storage", str(error)) from error
    return VideoInfo(float(video.fps), int(video.frames), int(video.height), int(video.width))
