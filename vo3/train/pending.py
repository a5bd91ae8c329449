"""Rollouts of a step that was interrupted before its update."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence

import jax
from etils import epath

from vo3.rollout import Rollout
from vo3.rollout.host_calls import HostCalls
from vo3.rollout.opener import video_name
from vo3.rollout.run import Video
from vo3.trajectory import Task, Trajectory
from vo3.video import Clip, VideoError


@dataclasses.dataclass(frozen=True)
class Kept:
    """What is kept of a step's first half.

    Attributes:
      trajectories: of this process, written with `vo3.train.scoring.with_reward`.
      cursor: number of the next prompt.
      ended: the data ended before the step was full.
    """

    trajectories: tuple[Trajectory, ...]
    cursor: int
    ended: bool


class Pending:
    """Rollouts of a step that was interrupted before its update: WORKDIR/pending/PROCESS.jsonl.

    The first line says which step they are of; they are used only if the run goes on right there. The second says where the data stands.
    """

    def __init__(self, workdir: epath.PathLike):
        self._file = epath.Path(workdir) / "pending" / f"{jax.process_index()}.jsonl"

    def write(self, header: str, kept: Kept) -> None:
        """Keeps them."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        part = self._file.with_name(f"{self._file.name}.part")
        place = json.dumps({"cursor": kept.cursor, "ended": kept.ended})
        lines = [header, place, *(t.dumps() for t in kept.trajectories)]
        part.write_text("\n".join(lines) + "\n")
        part.replace(self._file)

    def read(self, header: str) -> Kept | None:
        """Those of this very step; None when there are none."""
        if not self._file.exists():
            return None
        # Not `splitlines`: a model may write U+2028, which JSON leaves as it is.
        first, *lines = self._file.read_text().removesuffix("\n").split("\n")
        if first != header:
            return None
        place, *lines = lines
        return Kept(tuple(Trajectory.loads(line) for line in lines), **json.loads(place))

    def drop(self) -> None:
        """Forgets them."""
        if self._file.exists():
            self._file.unlink()


def reopened(
    trajectories: Sequence[Trajectory], open_video: Callable[[Task], Video], host: HostCalls
) -> tuple[Rollout, ...]:
    """The rollouts of a task with their clips, read again on host threads under their time limit.

    Where a clip cannot be read the rollout has none, and its trajectory says so as the engine would: `meta["video_error"]`.
    """
    task = trajectories[0].task
    name = video_name(task)

    def first() -> tuple[Video, Clip]:
        video = open_video(task)
        return video, video.overview()

    try:
        video, overview = host.submit(first, name).result()
    except VideoError as error:
        return tuple(_lost(trajectory, error) for trajectory in trajectories)
    rollouts = []
    for trajectory in trajectories:
        tickets = [
            host.submit(lambda s=shown: video.crop(s.start, s.end, s.strategy), name)
            for shown in trajectory.observations[1:]
        ]
        try:
            clips = (overview, *(ticket.result() for ticket in tickets))
        except VideoError as error:
            rollouts.append(_lost(trajectory, error))
        else:
            rollouts.append(Rollout(trajectory, clips))
    return tuple(rollouts)


def _lost(trajectory: Trajectory, error: VideoError) -> Rollout:
    found = {"video_error": {"kind": error.kind, "message": str(error)}}
    # What the engine noted first, if anything, is what happened.
    meta = {**found, **trajectory.meta}
    return Rollout(dataclasses.replace(trajectory, meta=meta), ())
