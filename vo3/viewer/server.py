"""The page over many trajectories, served: the list comes at once, a trajectory and its frames when they are looked at.

For files too large for one self-contained page. It listens on this machine only and gives nothing but what the files hold.
"""

from __future__ import annotations

import array
import collections
import dataclasses
import http.server
import json
import threading
import urllib.parse
from typing import Any

from etils import epath

from vo3.trajectory import Trajectory
from vo3.video import VideoError
from vo3.viewer import browser, page
from vo3.viewer.gallery import Lines, clips_of, display_names

_QUESTION = 300  # characters of a question in the list
_KEPT = 64 << 20  # bytes of what was made of trajectories


@dataclasses.dataclass(frozen=True)
class _Made:
    """What is shown of a trajectory: some frames on the list's page, all of them on its own."""

    record: dict[str, Any]
    page: bytes

    @property
    def size(self) -> int:
        """Bytes, nearly: the frames on the list's page are far smaller than those on its own."""
        return 2 * len(self.page)


class Shelf:
    """The trajectories of a file: where each line begins, and what the list shows of it.

    What was looked at last is kept as it is sent: frames themselves would be gigabytes.

    Attributes:
      path: of the file.
      summaries: what the list shows, in the order of the file.
      problems: a sentence for each line that is no trajectory.
    """

    def __init__(self, path: epath.PathLike, *, videos: epath.PathLike | None, frames: bool):
        self.path = epath.Path(path)
        self._videos, self._frames = videos, frames
        self.problems: list[str] = []
        self.summaries: list[dict[str, Any]] = []
        self._starts = array.array("Q")
        self._numbers: dict[str, int] = {}
        lines = Lines(self.path, self.problems)
        for _, trajectory in lines:
            self._numbers.setdefault(trajectory.task.id, len(self.summaries))
            self.summaries.append(summary(trajectory, len(self.summaries)))
            self._starts.append(lines.start)
        self._lock = threading.Lock()
        self._kept: collections.OrderedDict[int, _Made] = collections.OrderedDict()

    def number_of(self, name: str) -> int | None:
        """Where a question stands; None where the file has not got it."""
        return self._numbers.get(name)

    def trajectory(self, number: int) -> Trajectory:
        """One trajectory.

        Raises:
          IndexError: no such number.
        """
        if not 0 <= number < len(self._starts):
            raise IndexError(f"there are trajectories 0 to {len(self._starts) - 1}, not {number}")
        with self.path.open("rb") as file:
            file.seek(self._starts[number])
            return Trajectory.loads(file.readline().decode())

    def page(self, number: int) -> bytes:
        """Its own page, with all frames; with none where the video cannot be read.

        Raises:
          IndexError: no such number.
        """
        return self._made(number).page

    def record(self, number: int, trace: str) -> dict[str, Any]:
        """All that the list's page shows of a trajectory, some frames among it; `trace` is the path of its own page.

        Raises:
          IndexError: no such number.
        """
        return self._made(number).record | {"n": number, "page": f"{trace}?n={number}"}

    def _made(self, number: int) -> _Made:
        with self._lock:  # a decoder at a time
            if number in self._kept:
                self._kept.move_to_end(number)
                return self._kept[number]
            trajectory, clips, whole = self.trajectory(number), {}, True
            if self._frames:
                try:
                    clips = clips_of(trajectory, videos=self._videos)
                except VideoError:
                    whole = False  # it may be there next time
            text = page.render(trajectory, clips=clips)
            made = _Made(browser.record(trajectory, clips=clips), text.encode())
            if whole:
                self._kept[number] = made
                while sum(m.size for m in self._kept.values()) > _KEPT:
                    self._kept.popitem(last=False)
            return made


def summary(trajectory: Trajectory, number: int) -> dict[str, Any]:
    """What the list and its filters need of a trajectory; `n` fetches the rest."""
    found = browser.brief(trajectory)
    return found | {"question": found["question"][:_QUESTION], "n": number}


class Server(http.server.ThreadingHTTPServer):
    """Serves one file, or two beside each other."""

    daemon_threads = True

    def __init__(
        self,
        source: epath.PathLike,
        *,
        other: epath.PathLike | None = None,
        videos: epath.PathLike | None = None,
        frames: bool = True,
        port: int = 0,
    ):
        """Reads the files' summaries and takes the port; 0 takes a free one.

        Args:
          source: one JSON trajectory a line.
          other: of another checkpoint on the same questions.
          videos: folder that the videos' relative paths start from.
          frames: whether videos are read for pictures.
          port: on this machine.
        """
        self.shelf = Shelf(source, videos=videos, frames=frames)
        self.beside = None if other is None else Shelf(other, videos=videos, frames=frames)
        names = display_names(source, other)
        self.index = browser.render(
            " and ".join(names),
            self.shelf.summaries,
            other=None if self.beside is None else self.beside.summaries,
            names=(names[0], names[-1]),
            served=True,
        ).encode()
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def url(self) -> str:
        """Where the list is."""
        return f"http://127.0.0.1:{self.server_address[1]}/"

    @property
    def problems(self) -> list[str]:
        """Of both files."""
        return self.shelf.problems + (self.beside.problems if self.beside else [])


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        """The list, a record, or a trajectory's own page."""
        if self.headers.get("Host", "").rsplit(":", 1)[0] not in ("127.0.0.1", "localhost"):
            # A page elsewhere must not reach this server through a name of its own.
            self._send(403, "text/plain", b"forbidden")
            return
        parts = urllib.parse.urlsplit(self.path)
        if parts.path == "/":
            self._send(200, "text/html; charset=utf-8", self.server.index)
            return
        try:
            number = int(urllib.parse.parse_qs(parts.query)["n"][0])
            kind, body = self._made(parts.path, number)
        except (KeyError, ValueError, IndexError):
            self._send(404, "text/plain", b"no such trajectory")
            return
        self._send(200, kind, body)

    def _made(self, path: str, number: int) -> tuple[str, bytes]:
        """(content type, body).

        Raises:
          KeyError: no such path.
          IndexError: no such trajectory.
        """
        shelf, beside = self.server.shelf, self.server.beside
        if path == "/record":
            found = shelf.record(number, "trace")
            if beside is not None:
                at = beside.number_of(found["id"])
                found["other"] = None if at is None else beside.record(at, "other")
            return "application/json", json.dumps(found).encode()
        shown = {"/trace": shelf, "/other": beside}[path]
        if shown is None:
            raise KeyError(path)
        return "text/html; charset=utf-8", shown.page(number)

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments) -> None:
        """Silent: the terminal shows the address only."""
