"""Tokens on their way into a cache, with the pictures among them: what may be prefilled next, and what must be encoded first."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable

import numpy as np
from jaxtyping import Int32

from vo3.rollout.context import Context, Counts, Tokens
from vo3.rollout.vision import Patches


@dataclasses.dataclass(frozen=True)
class Span:
    """Features in a buffer.

    Attributes:
      row: of the conversation's features that the first one is.
      count: how many.
      offset: of the first one in the buffer.
    """

    row: int
    count: int
    offset: int


class FeatureBuffer:
    """Which rows of a shard's buffer are taken. Rows are taken in turn and let go when nothing is left that needs any."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self._top = 0
        self._live = 0

    def fits(self, count: int) -> bool:
        """Whether `count` rows are free."""
        return self._top + count <= self.capacity

    def take(self, count: int) -> int:
        """Takes `count` rows; the first of them."""
        offset, self._top = self._top, self._top + count
        self._live += count
        return offset

    def free(self, count: int) -> None:
        """Lets `count` rows go."""
        self._live -= count
        if not self._live:
            self._top = 0


class Stream:
    """The waiting tokens of one sequence: a group's prompt, or a leaf.

    Attributes:
      context: its tokens.
      counts: work done on it.
      used: cache slots of its own that are in use.
      calls: pictures that are not encoded yet, in order.
    """

    def __init__(self, context: Context, counts: Counts):
        self.context, self.counts = context, counts
        self.used = 0
        self.calls: collections.deque[Patches] = collections.deque()
        self._spans: list[Span] = []

    def show(self, calls: Iterable[Patches], row: int) -> None:
        """Pictures among the waiting tokens; the first feature is the conversation's `row`-th."""
        self.calls.extend(dataclasses.replace(call, row=row + call.row) for call in calls)

    def encoded(self, call: Patches, offset: int) -> None:
        """The features of `call` stand in the buffer from `offset` on."""
        self._spans.append(Span(call.row, call.count, offset))
        self.counts.patches += call.used

    def ready(self) -> int:
        """How many of the first waiting tokens have their features."""
        tokens = self.context.waiting()
        if not self.calls:
            return len(tokens)
        late = (tokens.rows >= self.calls[0].row).nonzero()[0]
        return int(late[0]) if late.size else len(tokens)

    def take(self, count: int, buffer: FeatureBuffer) -> tuple[Tokens, Int32[np.ndarray, "L"]]:
        """The first `count` waiting tokens, which are prefilled now, and where in the buffer their features are."""
        tokens = self.context.waiting()[:count]
        rows = np.full(count, -1, np.int32)
        for span in self._spans:
            mine = (tokens.rows >= span.row) & (tokens.rows < span.row + span.count)
            rows[mine] = tokens.rows[mine] - span.row + span.offset
        if ((tokens.rows >= 0) != (rows >= 0)).any():
            raise RuntimeError("tokens of a picture were to be prefilled before it was encoded")
        self.context.mark_cached(count)
        self.counts.prefilled += count
        self.used += count
        rest = self.context.waiting().rows
        kept = []
        for span in self._spans:
            if ((rest >= span.row) & (rest < span.row + span.count)).any():
                kept.append(span)
            else:
                buffer.free(span.count)
        self._spans = kept
        return tokens, rows

    def drop(self, buffer: FeatureBuffer) -> None:
        """Nobody wants these tokens any more: what they hold of the buffer is let go."""
        for span in self._spans:
            buffer.free(span.count)
        self._spans = []
        self.calls.clear()
