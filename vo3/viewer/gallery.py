"""A file of trajectories as a folder of pages with an index."""

from __future__ import annotations

import dataclasses
import os

from etils import epath

from vo3.trajectory import SCHEMA_VERSION, Trajectory
from vo3.video import Clip, VideoCrop, VideoError
from vo3.viewer.markup import Markup, tag
from vo3.viewer.page import document, judge, render, video_name
from vo3.viewer.pictures import clock
from vo3.viewer.timeline import duration_of


@dataclasses.dataclass(frozen=True)
class Written:
    """What `write` did.

    Attributes:
      pages: trajectories shown.
      broken: lines that are no trajectory.
      problems: a sentence for each broken line and each video that could not be read.
    """

    pages: int
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
    if videos is not None:
        root = os.fspath(videos)
        source = (
            os.path.join(root, source)
            if isinstance(source, str)
            else [os.path.join(root, p) for p in source]
        )
    video = VideoCrop(source, frame_fps=task.frame_fps)
    return {o.index: video.show(o) for o in trajectory.observations if o.media == "video"}


def write(
    source: epath.PathLike,
    out: epath.PathLike,
    *,
    videos: epath.PathLike | None = None,
    limit: int | None = None,
    frames: bool = True,
) -> Written:
    """Writes a page for every line of a file, and `index.html` over them.

    A line that is no trajectory, or a video that cannot be read, costs that line or those pictures and is named.

    Args:
      source: one JSON trajectory a line.
      out: folder of the pages; created.
      videos: folder that the videos' relative paths start from.
      limit: pages at most.
      frames: whether the videos are read for pictures.
    """
    out = epath.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    rows: list[Markup] = []
    problems: list[str] = []
    broken = 0
    with epath.Path(source).open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if limit is not None and len(rows) >= limit:
                break
            if not line.strip():
                continue
            try:
                trajectory = Trajectory.loads(line.decode())
            except (ValueError, AttributeError) as error:
                broken += 1
                problems.append(
                    f"{source}, line {number}: no trajectory of schema {SCHEMA_VERSION}: {error}"
                )
                continue
            clips: dict[int, Clip] = {}
            if frames:
                try:
                    clips = clips_of(trajectory, videos=videos)
                except VideoError as error:
                    problems.append(f"{source}, line {number}: shown without frames: {error}")
            name = f"{len(rows) + 1:05d}.html"
            (out / name).write_text(render(trajectory, clips=clips))
            rows.append(_row(name, trajectory))
    (out / "index.html").write_text(_index(os.path.basename(os.fspath(source)), rows))
    return Written(len(rows), broken, tuple(problems))


def _row(name: str, trajectory: Trajectory) -> Markup:
    right = judge(trajectory)
    verdict = "" if right is None else "right" if right else "wrong"
    tokens = sum(o.tokens for o in trajectory.observations)
    cells = [
        tag("a", trajectory.task.question or trajectory.task.id, href=name),
        trajectory.answer if trajectory.answer is not None else f"({trajectory.outcome})",
        tag("span", verdict, class_=verdict or None),
        f"{len(trajectory.observations[1:])}",
        f"{tokens:,}",
        f"{video_name(trajectory.task)}, {clock(duration_of(trajectory))}",
    ]
    return tag("tr", [tag("td", cell) for cell in cells])


def _index(name: str, rows: list[Markup]) -> str:
    names = ("question", "answer", "", "looks", "video tokens", "video")
    head = tag("thead", tag("tr", [tag("th", n, scope="col") for n in names]))
    count = "1 question" if len(rows) == 1 else f"{len(rows):,} questions"
    header = tag("header", tag("p", tag("span", count), class_="eyebrow"), tag("h1", name))
    table = tag("section", tag("table", head, tag("tbody", rows), class_="index"))
    return document(name, tag("main", header, table), script=False)
