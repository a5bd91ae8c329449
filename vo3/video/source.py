"""Where a video comes from: a path (local or gs://), bytes, or a file object. Each call opens it anew."""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
import threading
import urllib.parse
from collections.abc import Iterator
from typing import Any, BinaryIO

import av
from etils import epath

from vo3.video.deadline import Deadline
from vo3.video.errors import VideoError

# How lists of other files begin; they are refused before FFmpeg opens what they name.
_LISTS = (b"ffconcat", b"#EXTM3U", b"<?xml", b"<MPD")
# Demuxers that take text for a video, or open other files and addresses than the one they are given.
_NOT_VIDEOS = frozenset(
    ("tty", "hls", "concat", "dash", "webm_dash_manifest", "imf", "image2", "vobsub", "lavfi", "vapoursynth", "avisynth", "sdp",
     "rtp", "rtsp", "sap")
)  # fmt: skip
# FFmpeg may open nothing but the file it is given: a playlist in a video's clothes must not fetch other files or URLs. The list of
# formats is looked at before a demuxer reads anything.
_OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": ",".join(sorted(av.formats_available - _NOT_VIDEOS)),
}
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_LOCAL_BUFFER = 1 << 16
_REMOTE_BUFFER = 1 << 20  # one range request; small reads would pay a round trip each


class FileSource:
    """A local file, opened by FFmpeg itself."""

    def __init__(self, path: str):
        self.name = path
        self._path = path
        try:
            status = os.stat(path)
        except OSError as error:
            raise unreadable(self.name, error) from error
        if stat.S_ISDIR(status.st_mode):
            raise directory_error(self.name)
        if not stat.S_ISREG(
            status.st_mode
        ):  # a pipe or a device may block for ever, and cannot seek
            raise VideoError(
                "source", f"{self.name} is not a regular file", "save the video to a file first"
            )
        if not status.st_size:
            raise _empty(self.name)

    @contextlib.contextmanager
    def open(self, deadline: Deadline) -> Iterator[av.container.InputContainer]:
        """The opened container."""
        try:
            with open(self._path, "rb") as file:
                _refuse_list(file.read(16), self.name)
        except OSError as error:
            raise unreadable(self.name, error) from error
        # "file:" keeps a colon in the name from being taken for a protocol.
        with _opened(f"file:{self._path}", self.name, deadline, None) as container:
            yield container


class RemoteSource:
    """A path that etils.epath opens (gs:// and the like), read by ranges."""

    def __init__(self, path: epath.Path):
        self.name = os.fspath(path)
        self._path = path

    @contextlib.contextmanager
    def open(self, deadline: Deadline) -> Iterator[av.container.InputContainer]:
        """The opened container."""
        try:
            file = self._path.open("rb")
        except Exception as error:  # every backend has errors of its own
            if isinstance(error, FileNotFoundError):
                raise unreadable(self.name, error) from error
            raise VideoError(
                "read",
                f"{self.name} cannot be opened: {type(error).__name__}: {error}",
                "check the address and the credentials; gs:// needs the package gcsfs or tensorflow",
            ) from error
        with file:
            reader = _Reader(file, self.name, deadline)
            with _opened(reader, self.name, deadline, _REMOTE_BUFFER) as container:
                yield container


class BytesSource:
    """A whole file in memory."""

    def __init__(self, data: bytes):
        self.name = f"<{len(data)} bytes>"
        self._data = data
        if not data:
            raise _empty("the bytes")

    @contextlib.contextmanager
    def open(self, deadline: Deadline) -> Iterator[av.container.InputContainer]:
        """The opened container."""
        reader = _Reader(io.BytesIO(self._data), self.name, deadline)  # shares the memory
        with _opened(reader, self.name, deadline, _LOCAL_BUFFER) as container:
            yield container


class FileObjectSource:
    """A seekable binary file object of the caller's; calls take turns, since it has one position."""

    def __init__(self, file: BinaryIO):
        self.name = str(getattr(file, "name", "") or f"<{type(file).__name__}>")
        self._file = file
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def open(self, deadline: Deadline) -> Iterator[av.container.InputContainer]:
        """The opened container, once other calls on the file object are done."""
        if not self._lock.acquire(timeout=deadline.left()):
            raise deadline.error()
        try:
            reader = _Reader(self._file, self.name, deadline)
            with _opened(reader, self.name, deadline, _LOCAL_BUFFER) as container:
                yield container
        finally:
            self._lock.release()


Source = FileSource | RemoteSource | BytesSource | FileObjectSource


def make_source(source: Any) -> Source:
    """The source of a path, bytes or a binary file object.

    Raises:
      VideoError: kind "missing", "directory", "empty" or "source".
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return BytesSource(bytes(source))
    if isinstance(source, (str, os.PathLike)):
        path = plain_path(source)
        return RemoteSource(epath.Path(path)) if is_remote(path) else FileSource(path)
    if hasattr(source, "read"):
        if isinstance(source, io.TextIOBase):
            raise VideoError(
                "source", f"{source!r} is open as text", "open the file in binary mode ('rb')"
            )
        if not hasattr(source, "seek") or (hasattr(source, "seekable") and not source.seekable()):
            raise VideoError(
                "source", f"{source!r} cannot seek", "read it into bytes, or give a path"
            )
        return FileObjectSource(source)
    raise VideoError(
        "source",
        f"a video cannot be read from {type(source).__name__}",
        "give a path, bytes, a binary file object, a folder of frames with frame_fps, or a list of frame files",
    )


def plain_path(source: Any) -> str:
    """A path as it is opened: `~` in full, `file://` left out, other addresses (gs://) as they are.

    Nothing is looked at but whether a `file://` address with percent escapes is a file as it stands; else they are decoded.

    Raises:
      VideoError: kind "source": it is no path, or a web address.
    """
    text = os.fspath(source) if isinstance(source, (str, os.PathLike)) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise VideoError("source", f"{source!r} is not a path", "give the path of a video file")
    if text.startswith(("http://", "https://")):
        raise VideoError(
            "source", f"{text} is a web address", "download the video and give its path"
        )
    if text.startswith("file://"):
        path = text.removeprefix("file://")
        return path if "%" not in path or os.path.exists(path) else urllib.parse.unquote(path)
    return text if is_remote(text) else os.path.expanduser(text)


def is_remote(path: str) -> bool:
    """Whether a plain path is an address that etils.epath opens."""
    return _ADDRESS.match(path) is not None


class _Reader:
    """What FFmpeg sees of a file object: bounded reads, a clock, and the first error kept for the caller."""

    def __init__(self, file: BinaryIO, name: str, deadline: Deadline):
        self.name = name
        self.error: Exception | None = None
        self._file = file
        self._deadline = deadline
        self._at = 0
        try:
            self._size = int(file.seek(0, os.SEEK_END))
            head = self.read(16) if self._size else b""
        except Exception as error:
            raise self.error or read_error(name, error) from error
        if not self._size:
            raise _empty(name)
        _refuse_list(head, name)
        self._at = 0

    def read(self, size: int) -> bytes:
        try:
            self._deadline.check()
            self._file.seek(self._at)
            data = self._file.read(size)
            if not isinstance(data, (bytes, bytearray)) or len(data) > size:
                raise TypeError(f"read({size}) gave {type(data).__name__} of length {len(data)}")
        except VideoError as error:
            self.error = self.error or error
            raise
        except Exception as error:
            self.error = self.error or read_error(self.name, error)
            raise OSError(str(error)) from error
        self._at += len(data)
        return bytes(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def tell(self) -> int:
        return self._at


@contextlib.contextmanager
def _opened(
    file: str | _Reader, name: str, deadline: Deadline, buffer: int | None
) -> Iterator[av.container.InputContainer]:
    """Opens, and turns every FFmpeg error on the way into a VideoError that names the video."""
    try:
        deadline.check()
        left = deadline.left()
        container = av.open(
            file,
            mode="r",
            options=dict(_OPTIONS),
            timeout=(left, left),
            **({"buffer_size": buffer} if buffer else {}),
        )
        with container:
            if container.format.name.split(",")[0] in _NOT_VIDEOS:
                raise _not_a_video(name, f"it reads as {container.format.name!r}")
            yield container
    except VideoError:
        raise
    except (av.error.FFmpegError, OSError, ValueError) as error:
        if isinstance(file, _Reader) and file.error is not None:
            raise file.error from error
        # FFmpeg's interrupt is our time limit; a demuxer that it stops may call the file broken.
        if isinstance(error, av.error.ExitError) or not deadline.left():
            raise deadline.error() from error
        if isinstance(error, (FileNotFoundError, PermissionError)):
            raise unreadable(name, error) from error
        raise _not_a_video(name, str(error)) from error


def _refuse_list(head: bytes, name: str) -> None:
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(_LISTS):
        raise _not_a_video(name, "it is a list of other files")


def directory_error(name: str) -> VideoError:
    """For a folder where a video was expected."""
    return VideoError(
        "directory",
        f"{name} is a directory",
        "give a video file, or the rate at which the folder's frames were extracted (frame_fps)",
    )


def _not_a_video(name: str, reason: str) -> VideoError:
    return VideoError(
        "format",
        f"{name} is not a video that FFmpeg can open: {reason}",
        "check that it was copied completely (ffprobe shows why), or fetch it again",
    )


def unreadable(name: str, error: OSError) -> VideoError:
    """For a file or folder that the system does not let us open."""
    if isinstance(error, PermissionError):
        return VideoError(
            "missing", f"{name} cannot be read: permission denied", "change its permissions"
        )
    if isinstance(error, FileNotFoundError):
        return VideoError("missing", f"{name} does not exist", "check the path")
    return VideoError(
        "missing", f"{name} cannot be read: {error.strerror or error}", "check the path"
    )


def read_error(name: str, error: Exception) -> VideoError:
    """For storage that fails while it is read."""
    return VideoError(
        "read",
        f"reading {name} failed: {type(error).__name__}: {error}",
        "check the storage and try again",
    )


def _empty(name: str) -> VideoError:
    return VideoError("empty", f"{name} has no bytes", "fetch the video again")
