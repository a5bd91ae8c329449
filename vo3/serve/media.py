"""Where the video of a request comes from: a file under an allowed folder, an upload, a data URL, an allowed host, or pictures."""

from __future__ import annotations

import base64
import binascii
import contextlib
import dataclasses
import os
import tempfile
import urllib.parse
from collections.abc import Sequence
from typing import Protocol

from vo3.serve import fetch
from vo3.serve.errors import ApiError, invalid, shown, too_large
from vo3.serve.settings import Settings
from vo3.serve.uploads import Uploads
from vo3.video import CropPolicy, VideoCrop, VideoError

_HOW = "give a path under the server's --root, a data URL, or upload the file with POST /v1/files"
_PICTURES = {"image/png": ".png", "image/jpeg": ".jpg", "image/webp": ".webp", "image/bmp": ".bmp"}


class Media(Protocol):
    """A video that can be opened.

    Attributes:
      label: what the trajectory calls it; never a path that the client did not give.
      path: of a file that others may ask about too, so that it need not be opened anew; None otherwise.
    """

    label: str
    path: str | None

    def open(self, crop: CropPolicy, timeout_s: float) -> VideoCrop:
        """Opens it; called on a host thread.

        Raises:
          VideoError: it cannot be used.
          ApiError: it cannot be fetched.
        """

    def told(self, error: VideoError) -> VideoError:
        """A new error in the client's words: paths of this machine are not its business."""

    def hold(self) -> None:
        """Sees to it that the video stays until `close`. On the event loop, once the question is sure to be asked.

        Raises:
          ApiError: it has gone in the meantime.
        """

    def close(self) -> None:
        """Lets go of what was kept for this request; may be called again, from any thread."""


@dataclasses.dataclass(eq=False)
class File:
    """A file under a root of the server's."""

    label: str
    path: str | None

    def open(self, crop: CropPolicy, timeout_s: float) -> VideoCrop:
        """See `Media.open`."""
        return VideoCrop(self.path, crop, timeout_s=timeout_s)

    def told(self, error: VideoError) -> VideoError:
        """See `Media.told`."""
        return renamed(error, self.path, self.label)

    def hold(self) -> None:
        """Nothing to do: the file is not ours."""

    def close(self) -> None:
        """Nothing to do: the file stays."""


@dataclasses.dataclass(eq=False)
class Uploaded(File):
    """An upload, which stays while its question is asked though it be deleted."""

    id: str
    uploads: Uploads
    param: str

    @classmethod
    def find(cls, name: str, uploads: Uploads, *, param: str) -> Uploaded:
        """The upload with this id; see `Uploads.get`."""
        found = uploads.get(name, param=param)
        return cls(found.name, found.path, name, uploads, param)

    def hold(self) -> None:
        """See `Media.hold`."""
        self.uploads.hold(self.id, self, param=self.param)

    def close(self) -> None:
        """The file may go."""
        self.uploads.let_go(self)


@dataclasses.dataclass
class Bytes:
    """A video in the request itself."""

    label: str
    data: bytes
    path: str | None = None

    def open(self, crop: CropPolicy, timeout_s: float) -> VideoCrop:
        """See `Media.open`."""
        return VideoCrop(self.data, crop, timeout_s=timeout_s)

    def told(self, error: VideoError) -> VideoError:
        """See `Media.told`."""
        return renamed(error, None, self.label)

    def hold(self) -> None:
        """Nothing to do: the bytes are here."""

    def close(self) -> None:
        """Lets go of the bytes."""
        self.data = b""


@dataclasses.dataclass
class Pictures:
    """Pictures in the request, which are the frames of a video in order."""

    label: str
    pictures: Sequence[tuple[str, bytes]]
    fps: float
    path: str | None = None
    _folder: tempfile.TemporaryDirectory | None = None

    def open(self, crop: CropPolicy, timeout_s: float) -> VideoCrop:
        """See `Media.open`."""
        self._folder = tempfile.TemporaryDirectory(prefix="vo3-frames-")
        files = []
        for number, (suffix, data) in enumerate(self.pictures):
            files.append(os.path.join(self._folder.name, f"{number:05d}{suffix}"))
            with open(files[-1], "wb") as file:
                file.write(data)
        return VideoCrop(files, crop, frame_fps=self.fps, timeout_s=timeout_s)

    def told(self, error: VideoError) -> VideoError:
        """See `Media.told`."""
        folder = None if self._folder is None else self._folder.name + os.sep
        return renamed(error, folder, "image ")

    def hold(self) -> None:
        """Nothing to do: the pictures are here."""

    def close(self) -> None:
        """Removes the files."""
        self.pictures = ()
        if self._folder is not None:
            self._folder.cleanup()


@dataclasses.dataclass
class Fetched:
    """A video on an allowed host, fetched when it is opened."""

    label: str
    url: fetch.Url
    limit: float
    path: str | None = None
    _file: str | None = None

    def open(self, crop: CropPolicy, timeout_s: float) -> VideoCrop:
        """See `Media.open`."""
        self._file = fetch.download(self.url, limit=self.limit, timeout_s=timeout_s)
        return VideoCrop(self._file, crop, timeout_s=timeout_s)

    def told(self, error: VideoError) -> VideoError:
        """See `Media.told`."""
        return renamed(error, self._file, self.label)

    def hold(self) -> None:
        """Nothing to do: it is fetched when it is opened."""

    def close(self) -> None:
        """Removes the file."""
        if self._file is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._file)


def renamed(error: VideoError, path: str | None, label: str) -> VideoError:
    """A new error, with a label in the place of a path: the old one is its cause, and an error that is its own cause has no first one."""
    words = lambda text: text.replace(path, label) if path else text
    return VideoError(error.kind, words(error.message), words(error.remedy))


def video(url: str, settings: Settings, uploads: Uploads, *, param: str) -> Media:
    """The video that a `video_url` names; nothing is opened yet.

    Raises:
      ApiError: it may not be used, or it is no address.
    """
    if not url.strip() or "\0" in url:
        raise invalid(f"the video's address is empty or holds a NUL; {_HOW}", param=param)
    scheme, colon, rest = url.partition(":")
    scheme = scheme.lower()
    if colon and scheme == "data":
        kind, data = decode(url, limit=settings.limits.body, param=param)
        if kind.startswith("image/"):
            raise invalid(
                f"the data URL holds {shown(kind)}; pictures go into image_url", param=param
            )
        return Bytes(f"{len(data)} bytes of {shown(kind)}", data)
    if uploads.is_id(url):  # and no file of a root that begins so
        return Uploaded.find(url, uploads, param=param)
    if colon and scheme in ("http", "https"):
        return Fetched(shown(url, 200), fetch.check(url, settings.hosts, param=param), settings.limits.upload)  # fmt: skip
    if colon and rest[:2] == "//" and scheme != "file":
        raise invalid(f"addresses that begin with {shown(scheme)}: are not known; {_HOW}", param=param)  # fmt: skip
    path = urllib.parse.unquote(urllib.parse.urlsplit(url).path) if scheme == "file" else url
    return File(shown(url, 500), under_root(path, settings.roots, param=param))


def under_root(given: str, roots: Sequence[str], *, param: str) -> str:
    """The file that a path names, every symbolic link and `..` resolved, if it lies under a root.

    A relative path is looked for under each root in turn. Nothing is opened, and of what lies outside nothing is said.

    Raises:
      ApiError: 403 outside of the roots, 404 no such file under them.
    """
    if not roots:
        raise ApiError(403, "no_roots", f"this server reads no files of its own; {_HOW}", param=param)  # fmt: skip
    found_inside = False
    for root in roots:
        try:
            path = os.path.realpath(os.path.join(root, given))
        except (OSError, ValueError):  # a loop of links, a name that no file can have
            continue
        if os.path.commonpath([root, path]) != root:
            continue
        found_inside = True
        if os.path.isfile(path):
            return path
    if found_inside:
        raise ApiError(404, "video_not_found", f"there is no file {shown(given, 200)} under the server's folders; check the path", param=param)  # fmt: skip
    raise ApiError(403, "outside_roots", f"{shown(given, 200)} lies outside of the folders that this server reads; {_HOW}", param=param)  # fmt: skip


def picture(url: str, settings: Settings, *, param: str) -> tuple[str, bytes]:
    """(suffix, bytes) of a picture in a data URL.

    Raises:
      ApiError: anything else.
    """
    if not url.lower().startswith("data:"):
        raise invalid(f"image_url {shown(url)} is no data URL; send the picture itself", param=param)  # fmt: skip
    kind, data = decode(url, limit=settings.limits.body, param=param)
    if kind not in _PICTURES:
        raise invalid(f"the data URL holds {shown(kind)}; send one of {', '.join(_PICTURES)}", param=param)  # fmt: skip
    return _PICTURES[kind], data


def decode(url: str, *, limit: float, param: str) -> tuple[str, bytes]:
    """Kind and bytes of a base64 data URL.

    Raises:
      ApiError: it is none, is empty, or holds more than `limit` bytes.
    """
    head, comma, body = url.partition(",")
    kind, *flags = [part.strip() for part in head[len("data:") :].split(";")]
    if not comma or "base64" not in [flag.lower() for flag in flags]:
        raise invalid(
            f"{shown(url)} is no base64 data URL; write it as data:video/mp4;base64,...",
            param=param,
        )
    if len(body) > limit * 4 // 3 + 4:
        raise too_large("the data URL", limit, "upload the file with POST /v1/files")
    try:
        data = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid(f"the data URL is no base64 ({error})", param=param) from None
    if not data:
        raise invalid("the data URL holds no bytes", param=param)
    return kind.lower() or "application/octet-stream", data
