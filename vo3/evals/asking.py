"""The seam between evaluation and the rollout engines: the questions on each video in, finished trajectories out."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from vo3.evals.journal import failed
from vo3.evals.modes import Mode
from vo3.rollout.engine import Engine
from vo3.rollout.errors import RolloutError
from vo3.rollout.groups import GroupEngine
from vo3.rollout.sampler import Sampling
from vo3.trajectory import Task, Trajectory
from vo3.video import Clip, CropPolicy, VideoCrop, VideoError

# A path, or the files of a list of frames.
Source = str | tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Asked:
    """The questions on one video."""

    source: Source
    tasks: tuple[Task, ...]


class Asker(Protocol):
    """Answers the questions on videos."""

    def ask(self, videos: Iterable[Asked]) -> Iterator[Trajectory]:
        """A trajectory for every task, each as soon as it is finished; failures among them. Every video is opened once."""


def open_video(asked: Asked, crop: CropPolicy, timeout_s: float) -> VideoCrop:
    """The video of some questions.

    Raises:
      VideoError: it cannot be used.
    """
    source = asked.source if isinstance(asked.source, str) else list(asked.source)
    return VideoCrop(source, crop, frame_fps=asked.tasks[0].frame_fps, timeout_s=timeout_s)


def seed_of(seed: int, task: Task) -> int:
    """The seed of a question, 32 bits, from the run's and the question's id."""
    digest = hashlib.blake2b(f"{seed}/0/{task.id}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")


def _failed(
    task: Task, cause: VideoError | RolloutError | None, message: str | None = None
) -> Trajectory:
    """A question that could not be asked, of the kind of its cause."""
    if isinstance(cause, VideoError):
        kind = f"video: {cause.kind}"
    else:
        kind = "overview or request" if cause is None else f"request: {type(cause).__name__}"
    return failed(task, kind, message or str(cause))


class EngineAsker:
    """One question at a time. A video's overview is read, encoded and prefilled once for all of its questions."""

    def __init__(self, engine: Engine, mode: Mode, sampling: Sampling, *, timeout_s: float):
        """An asker for one mode; seconds limit each read of a video."""
        self.engine, self.mode, self.sampling = engine, mode, sampling
        self._timeout_s = timeout_s

    def ask(self, videos: Iterable[Asked]) -> Iterator[Trajectory]:
        """See `Asker`."""
        for asked in videos:
            try:
                video = open_video(asked, self.mode.crop, self._timeout_s)
            except VideoError as error:
                yield from (_failed(task, error) for task in asked.tasks)
                continue
            for task in asked.tasks:
                yield self._one(task, video)

    def _one(self, task: Task, video: VideoCrop) -> Trajectory:
        # The seed is the question's own: an answer does not depend on what was asked before it.
        seed = seed_of(self.sampling.seed, task)
        sampling = dataclasses.replace(self.sampling, seed=seed)
        try:
            return self.engine.rollout(
                task, video, policy=self.mode.rollout, sampling=sampling
            ).trajectory
        except (VideoError, RolloutError) as error:
            # The overview could not be read; a clip that cannot be is an error turn of the trajectory.
            return _failed(task, error)


class OverviewOnce:
    """A video whose overview is read once, by whoever asks first; for questions that are under way together."""

    def __init__(self, video: VideoCrop):
        self.video = video
        self._lock = threading.Lock()
        self._clip: Clip | None = None

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.video.duration

    def overview(self) -> Clip:
        """See `VideoCrop.overview`."""
        with self._lock:
            if self._clip is None:
                self._clip = self.video.overview()
            return self._clip

    def crop(
        self, t0: float, t1: float, strategy: str | None, *, rate: float | None = None
    ) -> Clip:
        """See `VideoCrop.crop`."""
        return self.video.crop(t0, t1, strategy, rate=rate)


class Shelf:
    """Open videos by source, the last few of them; a video is opened once though several threads ask for it."""

    def __init__(self, asked: Sequence[Asked], crop: CropPolicy, *, timeout_s: float, keep: int):
        self._asked = {one.source: one for one in asked}
        self._crop, self._timeout_s, self._keep = crop, timeout_s, keep
        self._lock = threading.Lock()
        self._open: collections.OrderedDict[Source, Any] = collections.OrderedDict()
        self._locks: dict[Source, threading.Lock] = {}
        self.errors: dict[Source, VideoError] = {}

    def video(self, task: Task) -> OverviewOnce:
        """The task's video.

        Raises:
          VideoError: it cannot be opened; every later question on it gets the same answer at once.
        """
        with self._lock:
            lock = self._locks.setdefault(task.video, threading.Lock())
        with lock:
            if task.video in self.errors:
                raise self.errors[task.video]
            if task.video not in self._open:
                try:
                    video = open_video(self._asked[task.video], self._crop, self._timeout_s)
                except VideoError as error:
                    self.errors[task.video] = error
                    raise
                with self._lock:
                    self._open[task.video] = OverviewOnce(video)
                    while len(self._open) > self._keep:
                        self._open.popitem(last=False)
            return self._open[task.video]


class GroupAsker:
    """Many questions in one batch, of the next videos as slots become free."""

    def __init__(self, engine: GroupEngine, mode: Mode, sampling: Sampling, *, timeout_s: float):
        """An asker for one mode; `engine` draws one rollout of each task."""
        if engine.rollouts != 1:
            raise ValueError(f"the engine draws {engine.rollouts} rollouts of a task, not 1")
        self.engine, self.mode, self.sampling = engine, mode, sampling
        self._timeout_s = timeout_s

    def ask(self, videos: Iterable[Asked]) -> Iterator[Trajectory]:
        """See `Asker`."""
        videos = list(videos)
        shelf = Shelf(videos, self.mode.crop, timeout_s=self._timeout_s, keep=16)
        tasks = [task for asked in videos for task in asked.tasks]
        for group in self.engine.run(
            tasks, shelf.video, sampling=self.sampling, seed=self.sampling.seed
        ):
            if group.error is None:
                yield group.rollouts[0].trajectory
            else:
                yield _failed(group.task, group.cause, group.error)
