"""Which trajectories every training step takes, in which rows, at which shape: one global plan, a pure function of numbers.

Every host computes the same plan from the same lengths and seed, without communication, whatever the number of hosts and
workers. An epoch holds each trajectory exactly once. A step takes a fixed number of trajectories (the last of an epoch: the
rest), however many rows they fill, and all its rows have one shape.

    shuffle (seed, epoch) -> rows by packing -> each row's bucket -> steps of one bucket -> shuffle of the steps

Steps of one bucket take trajectories of exactly the asked number: where rows do not add up, one row is split. What a bucket has
left over goes up to the next larger one.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Sequence

import numpy as np

from vo3.data.lengths import Lengths
from vo3.data.packing import Row, pack, shuffled

# Vision patches are padded to a multiple of this.
PATCH_MULTIPLE = 512


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """One step.

    Attributes:
      index: number of the step, counted over all epochs.
      length: tokens of every row, padding included.
      patches: vision patches of every row, padding included.
      rows: numbers of the trajectories of each row; empty rows fill up to the multiple.
    """

    index: int
    length: int
    patches: int
    rows: tuple[Row, ...]

    @property
    def trajectories(self) -> tuple[int, ...]:
        """Numbers of all trajectories of the step."""
        return tuple(number for row in self.rows for number in row)


@dataclasses.dataclass(frozen=True)
class PlanStats:
    """What an epoch of the plan pads.

    Attributes:
      steps, rows, empty_rows: how many; `rows` without the empty ones.
      tokens, token_slots: tokens, and places for them in the rows that are not empty.
      patches, patch_slots: the same of vision patches.
      shapes: shapes in use, each one compiled program.
    """

    steps: int
    rows: int
    empty_rows: int
    tokens: int
    token_slots: int
    patches: int
    patch_slots: int
    shapes: int

    @property
    def padding(self) -> float:
        """Share of token places that hold padding."""
        return 1 - self.tokens / self.token_slots

    @property
    def patch_padding(self) -> float:
        """Share of patch places that hold padding."""
        return 1 - self.patches / self.patch_slots if self.patch_slots else 0.0


class Plan:
    """The plan of a run.

    Attributes:
      steps_per_epoch: steps of an epoch.
      trajectories: numbers of the trajectories that are trained on.
      rejected: numbers of those that cannot be used (no tokens).
      too_long: numbers of those longer than `max_length`.
      shapes: (length, patches) of every bucket.
    """

    def __init__(
        self,
        lengths: Lengths,
        *,
        seed: int,
        trajectories_per_step: int = 256,
        max_length: int = 40_000,
        buckets: Sequence[int],
        rows_multiple: int = 1,
    ):
        """Checks the numbers; epochs are planned when asked for.

        Args:
          lengths: sizes of the trajectories of the source.
          seed: of the order.
          trajectories_per_step: trajectories of a step.
          max_length: most tokens of a row; longer trajectories are left out.
          buckets: row lengths in rising order; the last one holds `max_length`.
          rows_multiple: rows of a step are filled up with empty ones to a multiple of this.

        Raises:
          ValueError: arguments that do not fit, or nothing to train on.
        """
        buckets = tuple(int(b) for b in buckets)
        if not buckets or list(buckets) != sorted(set(buckets)) or buckets[0] < 1:
            raise ValueError(f"buckets must rise from at least 1, got {buckets}")
        if buckets[-1] < max_length:
            raise ValueError(
                f"the largest bucket, {buckets[-1]}, does not hold rows of max_length = {max_length} tokens"
            )
        for name, value in (
            ("trajectories_per_step", trajectories_per_step),
            ("max_length", max_length),
            ("rows_multiple", rows_multiple),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value!r}")
        self._tokens, self._patches = lengths.tokens, lengths.patches
        self._seed, self._per_step = int(seed), int(trajectories_per_step)
        self._max_length, self._rows_multiple = int(max_length), int(rows_multiple)
        self.rejected = np.flatnonzero(self._tokens <= 0)
        self.too_long = np.flatnonzero(self._tokens > max_length)
        self.trajectories = np.flatnonzero((self._tokens > 0) & (self._tokens <= max_length))
        if not self.trajectories.size:
            raise ValueError(
                f"none of {len(lengths)} trajectories can be trained on: {self.rejected.size} were rejected, "
                f"{self.too_long.size} are longer than {max_length} tokens"
            )
        self.shapes = tuple((b, self._patch_bound(b)) for b in buckets)
        self.steps_per_epoch = math.ceil(self.trajectories.size / self._per_step)
        self._epoch = functools.lru_cache(maxsize=2)(self._plan_epoch)

    def __getstate__(self) -> dict:
        # Worker processes get the numbers and plan for themselves; the epochs planned so far do not travel.
        return {name: value for name, value in self.__dict__.items() if name != "_epoch"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._epoch = functools.lru_cache(maxsize=2)(self._plan_epoch)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of everything that decides the order: two plans with the same one are the same plan."""
        digest = hashlib.blake2b(digest_size=16)
        numbers = (
            self._seed,
            self._per_step,
            self._max_length,
            *(n for s in self.shapes for n in s),
        )
        digest.update(repr(numbers).encode())
        digest.update(np.ascontiguousarray(self._tokens, np.int32).tobytes())
        digest.update(np.ascontiguousarray(self._patches, np.int32).tobytes())
        return digest.hexdigest()

    def step(self, index: int) -> StepPlan:
        """The step of this number, from 0, in any epoch."""
        if index < 0:
            raise IndexError(f"steps are counted from 0, got {index}")
        epoch, within = divmod(index, self.steps_per_epoch)
        bucket, rows = self._epoch(epoch)[within]
        missing = -len(rows) % self._rows_multiple
        length, patches = self.shapes[bucket]
        return StepPlan(index, length, patches, (*rows, *((),) * missing))

    def stats(self, epoch: int = 0) -> PlanStats:
        """What this epoch pads."""
        first = epoch * self.steps_per_epoch
        steps = [self.step(i) for i in range(first, first + self.steps_per_epoch)]
        full = [sum(bool(row) for row in step.rows) for step in steps]
        return PlanStats(
            steps=len(steps),
            rows=sum(full),
            empty_rows=sum(len(s.rows) for s in steps) - sum(full),
            tokens=int(self._tokens[self.trajectories].sum(dtype=np.int64)),
            token_slots=sum(s.length * n for s, n in zip(steps, full, strict=True)),
            patches=int(self._patches[self.trajectories].sum(dtype=np.int64)),
            patch_slots=sum(s.patches * n for s, n in zip(steps, full, strict=True)),
            shapes=len({(s.length, s.patches) for s in steps}),
        )

    def _patch_bound(self, length: int) -> int:
        """Patches that no row of this many tokens exceeds, whatever it is packed from.

        Of r_i patches a token in trajectory i, a row has at most max r_i. The bound depends on the lengths alone, so that
        every epoch has the same shapes.
        """
        usable = self.trajectories
        length = min(length, self._max_length)
        ratio = (self._patches[usable] / self._tokens[usable]).max()
        return math.ceil(ratio * length / PATCH_MULTIPLE) * PATCH_MULTIPLE

    def _plan_epoch(self, epoch: int) -> list[tuple[int, tuple[Row, ...]]]:
        """(bucket, rows) of every step of an epoch."""
        order = self.trajectories[shuffled(self.trajectories.size, (self._seed, epoch, 0))]
        rows = pack(order, self._tokens, capacity=self._max_length)
        lengths = np.array([s[0] for s in self.shapes])
        totals = np.array([self._tokens[list(row)].sum(dtype=np.int64) for row in rows])
        bucket_of = np.searchsorted(lengths, totals)
        rows_order = shuffled(len(rows), (self._seed, epoch, 1))
        steps, rest = [], []
        for bucket in range(len(self.shapes)):
            waiting = rest + [rows[r] for r in rows_order if bucket_of[r] == bucket]
            full, rest = _steps_of(waiting, self._per_step)
            steps += [(bucket, step) for step in full]
        order = shuffled(len(steps), (self._seed, epoch, 2))
        steps = [steps[i] for i in order]
        if rest:  # fewer than a step's trajectories: the end of the epoch
            largest = max(sum(int(self._tokens[n]) for n in row) for row in rest)
            steps.append((int(np.searchsorted(lengths, largest)), tuple(rest)))
        return steps


def _steps_of(rows: list[Row], count: int) -> tuple[list[tuple[Row, ...]], list[Row]]:
    """Groups of rows with exactly `count` trajectories each, in order, and the rows left over."""
    steps, step, have = [], [], 0
    for row in rows:
        while have + len(row) >= count:
            need = count - have
            step.append(row[:need])
            steps.append(tuple(step))
            row, step, have = row[need:], [], 0
        if row:
            step.append(row)
            have += len(row)
    return steps, step
