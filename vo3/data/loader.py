"""The loader: rows of a plan, decoded and packed ahead of time by worker processes (grain), resumable at any step.

What a micro-batch holds is a pure function of the plan, the source and the videos: the number of workers and of hosts
decides only who makes it. A trajectory that fails (its video, its row, a shard that is gone) leaves a hole in its step and
a `Failure` with its name; nothing takes its place, so every other step stays what it was. A video that ends the worker
process itself is tried once more and then left out too.

Memory: a worker holds the micro-batch it makes and at most `AHEAD` finished ones.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import pathlib
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from typing import Any, NamedTuple

import grain
from absl import flags, logging
from etils import epath

from vo3.chat.tokens import Tokenizer
from vo3.data.clip_cache import ClipCache
from vo3.data.failures import ELSEWHERE, Failure, FailureLimitError, FailureRecord
from vo3.data.feature_cache import FeatureCache
from vo3.data.items import Encoding, ItemReader
from vo3.data.plan import StepPlan
from vo3.data.rows import Rows
from vo3.data.source import TrajectorySource
from vo3.data.work import Plan, Work, WorkerStart, marks_of_the_dead, stop_workers
from vo3.models.qwen2_5_vl.config import VisionConfig
from vo3.video import CropPolicy

# Finished micro-batches of a worker: one that waits to be handed over, one in the pipe, one in the trainer's process.
AHEAD = 3
# A share of failures is judged from so many trajectories on.
_JUDGE_FROM = 200
_CRASHES = 2
_WORKER_DIED = "terminated unexpectedly"


class LoadedStep(NamedTuple):
    """A step and its micro-batches.

    Attributes:
      plan: shape and trajectories of the step.
      micro_batches: this process's rows, `len(micro_batches)` times; made while they are taken, so take them once.
    """

    plan: StepPlan
    micro_batches: MicroBatches


@dataclasses.dataclass(frozen=True)
class MicroBatch:
    """Rows that go through the device together.

    Attributes:
      rows: this process's rows.
      failures: trajectories that were left out of them.
    """

    rows: Rows
    failures: tuple[Failure, ...]


class MicroBatches(Iterable[MicroBatch]):
    """The micro-batches of one step, in order, each taken once."""

    def __init__(self, take: Iterator[MicroBatch], count: int):
        self._take, self._count, self._left = take, count, count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[MicroBatch]:
        while self._left:
            self._left -= 1
            yield next(self._take)


@dataclasses.dataclass
class LoaderCounts:
    """What a loader did in this process.

    Attributes:
      trajectories: asked for, failed ones included.
      failures: by kind.
      restarts: times the workers were started again because one had died.
      waited: seconds that the caller waited for micro-batches.
      cache: sums of the caches' counts over the workers, by name; those of the feature cache begin with features_.
    """

    trajectories: int = 0
    failures: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    restarts: int = 0
    waited: float = 0.0
    cache: collections.Counter = dataclasses.field(default_factory=collections.Counter)

    @property
    def share(self) -> float:
        """Failed trajectories over all, in [0, 1]."""
        return sum(self.failures.values()) / self.trajectories if self.trajectories else 0.0


def make_loader(
    plan: Plan,
    source: TrajectorySource,
    tokenizer: Tokenizer,
    *,
    crop_policy: CropPolicy,
    vision: VisionConfig,
    rows_per_batch: int,
    encoding: Encoding | None = None,
    start_step: int = 0,
    stop_step: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 1,
    clip_cache: ClipCache | None = None,
    feature_cache: FeatureCache | None = None,
    time_limit: float = 120.0,
    failure_limit: float = 0.1,
    failures: epath.PathLike | None = None,
    failures_of: int | None = None,
) -> Loader:
    """An iterator over `LoadedStep`s from `start_step` on.

    Args:
      plan: which trajectories every step takes.
      source: the trajectories.
      tokenizer: of the model.
      crop_policy: what is shown of a video.
      vision: of the tower.
      rows_per_batch: rows of a micro-batch, of all processes together; divides the rows of every step.
      encoding: how trajectories become tokens; `Encoding()` when None.
      start_step, stop_step: the first step, and the one to end before; None: never.
      process_index, process_count: which block of every micro-batch's rows is made here. Processes whose devices share rows
        (tensor or context parallel) have the same index.
      workers: processes that decode; 0 makes everything in this one, when asked for.
      clip_cache: keeps decoded clips.
      feature_cache: keeps vision features; rows then hold features in place of patches.
      time_limit: seconds that one trajectory with its clips may take.
      failure_limit: share of failed trajectories above which the run stops.
      failures: a folder where failures are written (one file per process). Those that stand there already for a step are
        not tried again, so that a run that is started again sees the same holes.
      failures_of: number in the name of this process's file there; None: process_index. Processes of the same index need
        numbers of their own, else they write over each other's.

    Raises:
      ValueError: numbers that do not fit each other.
    """
    if process_count < 1 or not 0 <= process_index < process_count:
        raise ValueError(f"process_index {process_index} of process_count {process_count}")
    if rows_per_batch < 1 or rows_per_batch % process_count:
        raise ValueError(
            f"rows_per_batch = {rows_per_batch} does not divide over {process_count} processes"
        )
    if workers < 0 or start_step < 0 or (stop_step is not None and stop_step < start_step):
        raise ValueError(f"workers {workers}, start_step {start_step}, stop_step {stop_step}")
    reader = ItemReader(
        source,
        tokenizer,
        crop_policy=crop_policy,
        encoding=encoding or Encoding(),
        clip_cache=clip_cache,
        feature_cache=feature_cache,
        time_limit=time_limit,
    )
    of = process_index if failures_of is None else failures_of
    record = FailureRecord(failures, of) if failures is not None else None
    batches = Work(
        plan,
        reader,
        vision,
        rows_per_batch=rows_per_batch,
        start_step=start_step,
        stop_step=stop_step,
        process_index=process_index,
        process_count=process_count,
        known=record.known if record is not None else {},
    )
    return Loader(batches, workers=workers, failure_limit=failure_limit, record=record)


class Loader(Iterator[LoadedStep]):
    """Steps in order; see `make_loader`. Use it as a context manager, or `close` it, so that the workers end.

    Attributes:
      step: number of the next step: what to pass as `start_step` to go on from here.
      counts: what was loaded, what failed, how long the caller waited.
    """

    def __init__(
        self,
        batches: Work,
        *,
        workers: int,
        failure_limit: float,
        record: FailureRecord | None,
    ):
        self.step = batches.start_step
        self.counts = LoaderCounts()
        self._batches, self._workers = batches, workers
        self._failure_limit, self._record = failure_limit, record
        self._taken = 0  # micro-batches handed out
        self._marks = pathlib.Path(tempfile.mkdtemp(prefix="vo3-loader-")) if workers else None
        self._crashes: collections.Counter[tuple[int, int]] = collections.Counter()
        self._vain = 0  # restarts since the last micro-batch
        self._elements: Any = None
        self._current: MicroBatches | None = None
        self._closed = False
        self._counting = (
            threading.Lock()
        )  # `again` may be called beside the thread that takes steps

    def __next__(self) -> LoadedStep:
        if self._closed:
            raise ValueError("the loader is closed")
        for _ in self._current or ():  # what the caller left of the step before
            pass
        if self._batches.stop_step is not None and self.step >= self._batches.stop_step:
            self._end()
            raise StopIteration
        plan = self._batches.plan.step(self.step)
        count = self._batches.count(plan)
        self.step += 1
        self._current = MicroBatches(self._take(), count)
        return LoadedStep(plan, self._current)

    def start(self) -> None:
        """Starts the workers now; else the first step does."""
        if self._elements is None:
            self._elements = self._begin()
            self._elements.start_prefetch()

    def again(
        self, plan: StepPlan, batch: int, made: MicroBatch, lost: Collection[int]
    ) -> MicroBatch:
        """A micro-batch once more, made here and now, without what another process that makes the same rows could not read.

        Args:
          plan: of the step.
          batch: number of the micro-batch in it.
          made: what was made of it; what failed then is not tried again.
          lost: numbers of the trajectories to leave out.
        """
        known = {**self._batches.known, **{(f.step, f.number): f for f in made.failures}}
        for number in lost:
            message = "another process that feeds the same rows could not read it; its own file of failures says why"
            other = Failure(plan.index, number, "", "", ELSEWHERE, message)
            known.setdefault((plan.index, number), other)
        element = dataclasses.replace(self._batches, known=known, marks=None).make(plan, batch)
        failures = tuple(element["failures"])
        before = {failure.number for failure in made.failures}
        self._note(tuple(f for f in failures if f.number not in before))
        return MicroBatch(Rows(**element["rows"]), failures)

    def close(self) -> None:
        """Ends the workers."""
        self._closed = True
        self._end()
        if self._marks is not None:
            shutil.rmtree(self._marks, ignore_errors=True)

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------ micro-batches

    def _take(self) -> Iterator[MicroBatch]:
        while True:
            began = time.monotonic()
            element = self._element()
            self.counts.waited += time.monotonic() - began
            self._taken += 1
            self._vain = 0
            rows = Rows(**element["rows"])
            failures = tuple(element["failures"])
            self._count(element, failures)
            yield MicroBatch(rows, failures)

    def _element(self) -> dict[str, Any]:
        while True:
            try:
                if self._elements is None:
                    self._elements = self._begin()
                return next(self._elements)
            except RuntimeError as error:
                if _WORKER_DIED not in str(error):
                    raise
                self._after_a_crash(error)

    def _begin(self) -> Any:
        source = dataclasses.replace(self._batches, first=self._taken, marks=self._marks)
        data = grain.MapDataset.source(source).to_iter_dataset(
            grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        )
        if not self._workers:
            return iter(data)
        size = self._batches.nbytes(self.step)
        if not _fits_shared_memory(size * self._workers * (AHEAD + 1)):
            # A page that does not fit there kills the process that touches it; a pipe only costs copies.
            options = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
            data = grain.experimental.WithOptionsIterDataset(data, options)
        if not flags.FLAGS.is_parsed():
            # Grain asks its own flags when it starts workers; a library call has no command line to parse.
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=1)
        return iter(data.mp_prefetch(options, worker_init_fn=WorkerStart(os.getpid())))

    def _end(self) -> None:
        if self._elements is not None:
            if self._marks is not None:
                stop_workers(self._marks)
            self._elements.close()
            self._elements = None

    def _after_a_crash(self, error: RuntimeError) -> None:
        """Starts the workers anew; what ended one for the second time is left out from now on."""
        self.counts.restarts += 1
        self._vain += 1
        dead = marks_of_the_dead(self._marks)
        self._end()
        if not dead and self._vain > _CRASHES:
            raise RuntimeError(
                "worker processes of the loader die and none was reading a trajectory; they may be out of memory: lower "
                "data.workers"
            ) from error
        for mark in dead:
            place = (mark["step"], mark["number"])
            self._crashes[place] += 1
            logging.warning(
                "a worker died while it read trajectory %d (%s), for the %d. time",
                mark["number"], mark["video"], self._crashes[place],
            )  # fmt: skip
            if self._crashes[place] >= _CRASHES:
                message = "reading it ended the worker process; check the video with ffprobe"
                failure = Failure(*place, mark["id"], mark["video"], "crash", message)
                self._batches.known[place] = failure
        shutil.rmtree(self._marks, ignore_errors=True)
        self._marks.mkdir()

    def _count(self, element: dict[str, Any], failures: tuple[Failure, ...]) -> None:
        counts = self.counts
        counts.trajectories += element["trajectories"]
        counts.cache.update(element["cache"])
        self._note(failures)
        if counts.trajectories >= _JUDGE_FROM and counts.share > self._failure_limit:
            kinds = ", ".join(f"{kind} {n}" for kind, n in counts.failures.most_common())
            last = failures[-1].message if failures else ""
            if self._record is not None:
                self._record.forget(self._batches.start_step)
            raise FailureLimitError(
                f"{sum(counts.failures.values())} of {counts.trajectories} trajectories could not be read ({kinds}), more "
                f"than the limit of {100 * self._failure_limit:g} %. The last: {last}. Check that the videos and rows are "
                "where they were, or raise the limit (data.reject_limit)"
            )

    def _note(self, failures: tuple[Failure, ...]) -> None:
        for failure in failures:
            logging.warning(
                "step %d: trajectory %d (%s) is left out, %s: %s",
                failure.step, failure.number, failure.id, failure.kind, failure.message,
            )  # fmt: skip
        with self._counting:
            self.counts.failures.update(failure.kind for failure in failures)
            if self._record is not None:
                # What is written says why, so it is written where it happened.
                self._record.add(f for f in failures if f.kind != ELSEWHERE)


def _fits_shared_memory(size: int) -> bool:
    try:
        status = os.statvfs("/dev/shm")
    except OSError:
        return False
    room = status.f_bavail * status.f_frsize
    if size > room:
        logging.warning(
            "micro-batches ahead of the trainer take about %d MB and /dev/shm has %d MB left: they go through pipes, which "
            "is slower; give the container more shared memory or use fewer workers",
            size >> 20, room >> 20,
        )  # fmt: skip
    return size <= room
