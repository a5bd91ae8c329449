"""A file of trajectories as a folder: an index that holds them all, and pages with frames."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

from etils import epath

from vo3.data.row_parts import under
from vo3.trajectory import SCHEMA_VERSION, Trajectory
from vo3.video import Clip, VideoCrop, VideoError
from vo3.viewer import browser
from vo3.viewer.page import render


@dataclasses.dataclass(frozen=True)
class Written:
    """What `write` did.

    Attributes:
      pages: trajectories with a page of their own.
      shown: trajectories in the index.
      broken: lines that are no trajectory.
      problems: a sentence for each broken line and each video that could not be read.
    """

    pages: int
    shown: int
    broken: int
    problems: tuple[str, ...]


def clips_of(trajectory: Trajectory, *, videos: epath.PathLike | None = None) -> dict[int, Clip]:
    """The frames of every observation, read from the video again: the same frames at the same size.

    Args:
      trajectory: what was shown.
      videos: folder that a relative path starts from.

    Raises:
      VideoError: the video, or a frame of it, cannot be read.
    """
    task = trajectory.task
    source: str | list[str] = task.video if isinstance(task.video, str) else list(task.video)
    if isinstance(source, str):
        source = under(source, videos)
    else:
        source = [under(path, videos) for path in source]
    video = VideoCrop(source, frame_fps=task.frame_fps)
    return {o.index: video.show(o) for o in trajectory.observations if o.media != "image"}


def write(
    source: epath.PathLike,
    out: epath.PathLike,
    *,
    videos: epath.PathLike | None = None,
    limit: int | None = None,
    frames: bool = True,
    other: epath.PathLike | None = None,
) -> Written:
    """Writes `index.html` over every trajectory of a file, and a page with frames for the first ones.

    A line that is no trajectory, or a video that cannot be read, costs that line or those pictures and is named.

    Args:
      source: one JSON trajectory a line.
      out: folder of the pages; created.
      videos: folder that the videos' relative paths start from.
      limit: pages of each file at most; None: all. The index has every trajectory.
      frames: whether the videos are read for pictures.
      other: a second file, of another checkpoint on the same questions, to be shown beside the first.
    """
    out = epath.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    problems: list[str] = []
    first = Lines(epath.Path(source), problems)
    pages = _Pages(out, videos=videos, limit=limit, frames=frames, problems=problems)
    records = pages.write(first)
    second, beside = None, None
    if other is not None:
        second = Lines(epath.Path(other), problems)
        beside = pages.write(second, prefix="beside-")
    names = display_names(source, other)
    page = browser.render(" and ".join(names), records, other=beside, names=(names[0], names[-1]))
    (out / "index.html").write_text(page)
    broken = first.broken + (second.broken if second else 0)
    return Written(pages.count, len(records), broken, tuple(problems))


class _Pages:
    """Writes the pages of files' first trajectories; `count` of them so far."""

    def __init__(
        self,
        out: epath.Path,
        *,
        videos: epath.PathLike | None,
        limit: int | None,
        frames: bool,
        problems: list[str],
    ):
        self.count = 0
        self._out, self._videos, self._limit, self._frames = out, videos, limit, frames
        self._problems = problems

    def write(self, lines: Lines, prefix: str = "") -> list[dict[str, Any]]:
        """The records of all lines; the first `limit` of them get a page, and pictures where the videos can be read."""
        records = []
        for number, trajectory in lines:
            name, clips = None, {}
            if self._limit is None or len(records) < self._limit:
                if self._frames and trajectory.observations:
                    try:
                        clips = clips_of(trajectory, videos=self._videos)
                    except VideoError as error:
                        where = f"{lines.path}, line {number}"
                        self._problems.append(f"{where}: shown without frames: {error}")
                name = f"{prefix}{len(records) + 1:05d}.html"
                (self._out / name).write_text(render(trajectory, clips=clips))
                self.count += 1
            records.append(browser.record(trajectory, page=name, clips=clips))
        return records


def display_names(source: epath.PathLike, other: epath.PathLike | None) -> list[str]:
    """What the files are called: their names, or their paths where the names are the same."""
    paths = [os.fspath(path) for path in (source, other) if path is not None]
    names = [os.path.basename(path) for path in paths]
    return names if len(set(names)) == len(names) else paths


class Lines:
    """The trajectories of a file with their line numbers; what is none is counted and named.

    Attributes:
      path: of the file.
      broken: lines that are no trajectory.
      start: where the line that was read last begins, bytes.
    """

    def __init__(self, path: epath.Path, problems: list[str]):
        self.broken = self.start = 0
        self.path, self._problems = path, problems

    def __iter__(self) -> Iterator[tuple[int, Trajectory]]:
        with self.path.open("rb") as lines:
            end = 0
            for number, line in enumerate(lines, start=1):
                self.start, end = end, end + len(line)
                if not line.strip():
                    continue
                try:
                    yield number, Trajectory.loads(line.decode())
                except (ValueError, AttributeError) as error:
                    self.broken += 1
                    self._problems.append(
                        f"{self.path}, line {number}: no trajectory of schema {SCHEMA_VERSION}: {error}"
                    )
