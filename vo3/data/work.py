"""What a worker of the loader does: micro-batches by number, and the marks that tell what it was reading when it died."""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import threading
import time
from typing import Any, Protocol

import numpy as np

from vo3.data.failures import Failure, StopReading
from vo3.data.items import ItemReader
from vo3.data.plan import StepPlan
from vo3.data.rows import fit, pack_rows
from vo3.models.qwen2_5_vl.config import VisionConfig

# More micro-batches than any run has: grain wants a length before it is known.
_ENDLESS = 1 << 40
_STOP = "stop"


class Plan(Protocol):
    """What the loader asks of a plan; see `vo3.data.plan.Plan`."""

    def step(self, index: int) -> StepPlan:
        """The step of this number."""
        ...


@dataclasses.dataclass
class Work:
    """Micro-batches by number, for grain. Number 0 is the first one after `first` micro-batches from `start_step` on."""

    plan: Plan
    reader: ItemReader
    vision: VisionConfig
    rows_per_batch: int
    start_step: int
    stop_step: int | None
    process_index: int
    process_count: int
    known: dict[tuple[int, int], Failure]
    first: int = 0
    marks: pathlib.Path | None = None
    # ends[i]: micro-batches of the first i + 1 steps; found as far as it was asked for
    ends: list[int] = dataclasses.field(default_factory=list)

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, index: int) -> dict[str, Any]:
        place = self._place(self.first + index)
        if place is None:
            return {}
        return self.make(*place)

    def make(self, plan: StepPlan, batch: int) -> dict[str, Any]:
        """This process's rows of a step's micro-batch of this number, and what was left out of them."""
        share = self.rows_per_batch // self.process_count
        begin = batch * self.rows_per_batch + self.process_index * share
        before = self._cache_counts()
        mark = _Mark(self.marks)
        rows, failures = [], []
        for numbers in plan.rows[begin : begin + share]:
            items = []
            for number in numbers:
                found = self.known.get((plan.index, number))
                if found is None:
                    found = self.reader.read(
                        number,
                        step=plan.index,
                        note=lambda id_, video: mark.set(plan.index, number, id_, video),  # noqa: B023
                    )
                (failures if isinstance(found, Failure) else items).append(found)
            kept, lost = fit(items, step=plan.index, length=plan.length, patches=plan.patches)
            rows.append(kept)
            failures += lost
        mark.clear()
        cache = self.reader.feature_cache
        packed = pack_rows(
            rows,
            length=plan.length,
            patches=plan.patches,
            vision=self.vision,
            features=cache.spec if cache is not None else None,
        )
        after = self._cache_counts()
        return {
            "rows": {f.name: getattr(packed, f.name) for f in dataclasses.fields(packed)},
            "failures": failures,
            "trajectories": sum(len(row) for row in plan.rows[begin : begin + share]),
            "cache": {name: after[name] - before[name] for name in after},
        }

    def count(self, plan: StepPlan) -> int:
        """Micro-batches of a step.

        Raises:
          ValueError: the rows of the step do not divide.
        """
        if not plan.rows or len(plan.rows) % self.rows_per_batch:
            raise ValueError(
                f"step {plan.index} has {len(plan.rows)} rows, not a multiple of rows_per_batch = {self.rows_per_batch}; "
                "plan with rows_multiple equal to it"
            )
        return len(plan.rows) // self.rows_per_batch

    def nbytes(self, step: int) -> int:
        """About how many bytes a micro-batch of this step takes."""
        plan = self.plan.step(step)
        share = self.rows_per_batch // self.process_count
        cache = self.reader.feature_cache
        per_patch = self.vision.patch_dim + 64
        if cache is not None:
            width = cache.spec.width * np.dtype(cache.spec.dtype).itemsize
            per_patch = width // self.vision.merge_unit + 1
        return share * (plan.length * 64 + plan.patches * per_patch)

    def _place(self, number: int) -> tuple[StepPlan, int] | None:
        """The step of a micro-batch, and which of its micro-batches it is; None behind the last step."""
        while not self.ends or self.ends[-1] <= number:
            step = self.start_step + len(self.ends)
            if self.stop_step is not None and step >= self.stop_step:
                return None
            before = self.ends[-1] if self.ends else 0
            self.ends.append(before + self.count(self.plan.step(step)))
        at = bisect.bisect_right(self.ends, number)
        begin = self.ends[at - 1] if at else 0
        return self.plan.step(self.start_step + at), number - begin

    def _cache_counts(self) -> dict[str, int]:
        counts = {}
        for prefix, cache in (
            ("", self.reader.clip_cache),
            ("features_", self.reader.feature_cache),
        ):
            if cache is not None:
                counts |= {prefix + k: n for k, n in dataclasses.asdict(cache.counts).items()}
        return counts


@dataclasses.dataclass(frozen=True)
class WorkerStart:
    """What a worker does first."""

    parent: int

    def __call__(self, index: int, count: int) -> None:
        """Keeps the worker off the accelerator, and makes it leave with its parent."""
        import jax

        # A worker imports jax for its types; the accelerator belongs to the trainer.
        jax.config.update("jax_platforms", "cpu")
        # Ctrl-C reaches every process of a terminal; the trainer says when it is over.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=self._leave_with_the_parent, daemon=True).start()

    def _leave_with_the_parent(self) -> None:
        # A worker waits for room in its pipe, so a parent that was killed would leave it waiting for ever.
        while os.getppid() == self.parent:
            time.sleep(1)
        os._exit(1)


class _Mark:
    """What this worker is reading, for whoever finds it dead."""

    def __init__(self, folder: pathlib.Path | None):
        self._folder = folder
        self._path = folder / str(os.getpid()) if folder is not None else None

    def set(self, step: int, number: int, id_: str, video: str) -> None:
        if self._path is not None:
            if (self._folder / _STOP).exists():
                raise StopReading
            mark = {"step": step, "number": number, "id": id_, "video": video}
            self._path.write_text(json.dumps(mark))

    def clear(self) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def stop_workers(marks: pathlib.Path) -> None:
    """Tells workers to drop what they are reading, at their next clip."""
    (marks / _STOP).touch()


def marks_of_the_dead(folder: pathlib.Path) -> list[dict[str, Any]]:
    """What workers that are gone were reading: step, number, id, video."""
    marks = []
    for path in folder.iterdir():
        if not path.name.isdigit():
            continue
        try:
            os.kill(int(path.name), 0)
        except ProcessLookupError:
            with contextlib.suppress(ValueError):  # it died while it wrote, before it read anything
                marks.append(json.loads(path.read_text()))
    return marks
