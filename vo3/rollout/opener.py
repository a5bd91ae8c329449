"""Opens tasks' videos on host threads: when a run asks for them, or ahead of it, while the policy's parameters are updated."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

from vo3.models.qwen2_5_vl.config import VisionConfig
from vo3.rollout.host_calls import HostCalls, Ticket
from vo3.rollout.run import Video, look
from vo3.rollout.vision import Patches, clip_patches
from vo3.trajectory import Task
from vo3.video import Clip


@dataclasses.dataclass(frozen=True)
class Opened:
    """What a host thread makes of a task's video."""

    video: Video
    overview: Clip
    patches: list[Patches]
    seconds: float


class Opener:
    """What is done to videos on host threads.

    Attributes:
      open_video: opens a task's video.
      host: the threads.
    """

    def __init__(
        self,
        open_video: Callable[[Task], Video],
        host: HostCalls,
        *,
        vision: VisionConfig,
        table: tuple[int, ...],
    ):
        """Opens nothing yet.

        Args:
          open_video, host: see above.
          vision: of the model.
          table: buckets of patches.
        """
        self.open_video, self.host = open_video, host
        self._vision, self._table = vision, table
        self._ahead: dict[str, tuple[Task, Ticket[Opened]]] = {}

    def ahead(self, task: Task) -> None:
        """Begins with a task that will be asked for."""
        self._ahead[task.id] = (task, self._submit(task))

    def open(self, task: Task) -> Ticket[Opened]:
        """The video and its overview; under way already where `ahead` began with this very task."""
        begun, ticket = self._ahead.pop(task.id, (None, None))
        return ticket if ticket is not None and begun == task else self._submit(task)

    def clip(self, task: Task, video: Video, call) -> Ticket[tuple[Clip, list[Patches]]]:
        """What a call shows: the frames, and the calls of the vision tower that they need."""

        def work() -> tuple[Clip, list[Patches]]:
            clip = look(video, call)
            return clip, self._patches(clip)

        return self.host.submit(work, video_name(task))

    def close(self) -> None:
        """Lets go of the threads, and of what nobody asked for."""
        self._ahead.clear()
        self.host.close()

    def _submit(self, task: Task) -> Ticket[Opened]:
        def work() -> Opened:
            began = time.perf_counter()
            video = self.open_video(task)
            overview = video.overview()
            patches = self._patches(overview)
            return Opened(video, overview, patches, time.perf_counter() - began)

        return self.host.submit(work, video_name(task))

    def _patches(self, clip: Clip) -> list[Patches]:
        return list(clip_patches(clip, self._vision, self._table, 0))


def video_name(task: Task) -> str:
    """How messages call a task's video."""
    return task.video if isinstance(task.video, str) else f"the video of task {task.id}"
