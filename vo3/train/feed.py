"""Where training batches come from, behind one interface: ClueWorld made on the fly, a list in memory, or rows with videos (`row_feed`)."""

from __future__ import annotations

import dataclasses
import functools
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import ml_collections
import numpy as np

from vo3.clueworld.data import DataConfig, make_stream
from vo3.train.batch import Batch, RowBatch
from vo3.train.prefetch import prefetch
from vo3.train.state import Params, Trainable
from vo3.train.work import Work, work_of


@dataclasses.dataclass(frozen=True)
class MicroBatch:
    """What goes through the devices at once.

    Attributes:
      step: number of the optimiser step, from 0.
      last: whether the step's update follows.
      batch: numpy; a `RowBatch` holds this process's rows, a `Batch` all rows.
      work: its share of the step's work, over all processes.
      names: what is in it, for people: ids or numbers of its trajectories.
      settle: where several processes feed the same rows: to be called before the batch is used, by every process and at the same
        place of its program order, so never on a thread beside it. Gives the micro-batch that they agree on; None: this one.
    """

    step: int
    last: bool
    batch: Batch | RowBatch
    work: Work
    names: tuple[str, ...] = ()
    settle: Callable[[], MicroBatch | None] | None = None


class Feed(Protocol):
    """Batches by step, each a pure function of its number.

    Attributes:
      steps_per_epoch: steps of an epoch; None where the data does not end.
      single: every step is one micro-batch.
      plan: a fingerprint of the order of the data; "" where the config says it all.
      rejected: share of the rows that cannot be used; None where there are no rows.
      tokenizer: of the ids.
    """

    steps_per_epoch: int | None
    single: bool
    plan: str
    rejected: float | None
    tokenizer: Any

    def prepare(self, run: Trainable, frozen: Params) -> None:
        """Called once, before `micro_batches`."""

    def micro_batches(self, start: int, stop: int) -> Iterator[MicroBatch]:
        """Those of the steps [start, stop), in order."""


class ClueWorldFeed:
    """`vo3.clueworld.data`'s stream, made ahead of time in worker processes. Every process makes all rows."""

    steps_per_epoch = None
    single = True
    plan = ""
    rejected = None

    def __init__(self, config: ml_collections.ConfigDict):
        fields = {"tdam": config.tdam.policy, **config.data.clueworld}
        try:
            self._data = DataConfig(**fields)
        except TypeError as error:
            known = [f.name for f in dataclasses.fields(DataConfig)]
            raise ValueError(f"data.clueworld: {error}; it may hold {', '.join(known)}") from error
        self._workers = config.data.workers

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The embedded tokenizer."""
        from vo3.clueworld.tokenizer import build_tokenizer

        return build_tokenizer()

    def prepare(self, run: Trainable, frozen: Params) -> None:
        """Nothing to do."""

    def micro_batches(self, start: int, stop: int) -> Iterator[MicroBatch]:
        """One a step."""
        make = functools.partial(make_stream, self._data)
        for step, batch in enumerate(
            prefetch(make, start=start, stop=stop, workers=self._workers), start
        ):
            yield MicroBatch(step, True, batch, _work(batch), (f"step {step} of {self._data}",))


class ListFeed:
    """Steps held in memory, for tests and small studies.

    Args:
      steps: micro-batches of each step; steps beyond the last begin again at the first.
      tokenizer: for samples as text.
      groups: blocks of rows: a process gets its own of each `RowBatch`.
      group: which one.
    """

    plan = ""
    rejected = None

    def __init__(
        self,
        steps: Sequence[Sequence[Batch | RowBatch]],
        *,
        tokenizer: Any = None,
        group: int = 0,
        groups: int = 1,
    ):
        self._steps, self._group, self._groups = steps, group, groups
        self.tokenizer = tokenizer
        self.steps_per_epoch = len(steps)
        self.single = all(len(step) == 1 for step in steps)

    def prepare(self, run: Trainable, frozen: Params) -> None:
        """Nothing to do."""

    def micro_batches(self, start: int, stop: int) -> Iterator[MicroBatch]:
        """Those of the list."""
        for step in range(start, stop):
            parts = self._steps[step % len(self._steps)]
            for i, batch in enumerate(parts):
                work = _work(batch)
                if isinstance(batch, RowBatch):
                    batch = local_rows(batch, self._group, self._groups)
                yield MicroBatch(step, i == len(parts) - 1, batch, work, (f"list {step}.{i}",))


def local_rows(batch: RowBatch, group: int, groups: int) -> RowBatch:
    """The rows of one of `groups` equal blocks.

    Raises:
      ValueError: the rows do not divide.
    """
    import jax

    rows = len(batch.ids)
    if rows % groups:
        raise ValueError(f"{rows} rows do not divide over {groups} groups of processes")
    part = slice(group * rows // groups, (group + 1) * rows // groups)
    return jax.tree.map(lambda x: x[part], batch)


def _work(batch: Batch | RowBatch) -> Work:
    enter = np.asarray(batch.visibility.enter)
    trajectories = sum(len(np.unique(row[row >= 0])) for row in enter)
    if isinstance(batch, RowBatch):
        patches = 0 if batch.vision is None else int(np.sum(batch.vision.count))
    else:
        patches = sum(x.size // (2 * 14 * 14 * 3) for x in (batch.overviews, batch.clips))
    return work_of(enter, patches, trajectories)


class Ahead:
    """Runs an iterator in a thread, `depth` items ahead, each after `prepare`: host work and transfers beside the step.

    A context manager; errors of the iterator are raised where the item is taken.
    """

    def __init__(self, items: Iterable[Any], prepare: Callable[[Any], Any], *, depth: int = 2):
        self._items, self._prepare = items, prepare
        self._queue: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Ahead:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        while self._thread.is_alive():
            # The thread may wait for room.
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                pass

    def __iter__(self) -> Iterator[Any]:
        while True:
            kind, value = self._queue.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value

    def _put(self, kind: str, value: Any) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put((kind, value), timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def _work(self) -> None:
        iterator = iter(self._items)
        try:
            for item in iterator:
                if not self._put("item", self._prepare(item)):
                    return
            self._put("end", None)
        except BaseException as error:  # handed over to the thread that takes the items
            self._put("error", error)
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()
