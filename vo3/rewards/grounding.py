"""Overlap of the windows a rollout looked at with the true clues."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Sequence

_CALL = re.compile(r"<grounding>(.*?)</grounding>", re.DOTALL)
_TINY = 1e-6  # seconds: a length at or below it counts as none


@dataclasses.dataclass(frozen=True)
class Interval:
    """Seconds of the whole video."""

    start: float
    end: float


@dataclasses.dataclass(frozen=True)
class Overlap:
    """How two sets of intervals meet.

    Attributes:
      iou: intersection / union, in [0, 1].
      iop: intersection / predicted.
      iog: intersection / true.
      diou: iou - (centre distance / enclosing length)^2 over the outer hulls, in (-1, 1].
    """

    iou: float
    iop: float
    iog: float
    diou: float

    @property
    def g1(self) -> float:
        """(IoU + IoP + IoG + (DIoU + 1) / 2) / 4."""
        return (self.iou + self.iop + self.iog + (self.diou + 1) / 2) / 4

    @property
    def g2(self) -> float:
        """(2 IoU + IoP + IoG) / 4."""
        return (2 * self.iou + self.iop + self.iog) / 4


def called_intervals(turns: Iterable[str]) -> list[Interval]:
    """The windows of every parsable call of every turn, ends sorted.

    A call is parsable when its block is a JSON object whose `temporal_segment` is a pair of numbers (or of strings that read
    as numbers). The strategy does not matter here. Infinity is kept: a window without a finite length forfeits IoU and IoP.
    """
    found = []
    for text in turns:
        for content in _CALL.findall(text):
            try:
                data = json.loads(content)
                pair = data.get("temporal_segment") if isinstance(data, dict) else None
                if not isinstance(pair, list) or len(pair) != 2:
                    continue
                first, second = float(pair[0]), float(pair[1])
            except (ValueError, TypeError, OverflowError, RecursionError):
                continue  # not a call: the format reward has already taken its share off
            found.append(Interval(min(first, second), max(first, second)))
    return found


def merge(intervals: Iterable[Interval]) -> list[Interval]:
    """The union of intervals as disjoint ones in order; touching ones are joined."""
    merged: list[Interval] = []
    for interval in sorted(intervals, key=lambda x: x.start):
        if merged and not interval.start > merged[-1].end:
            merged[-1] = Interval(merged[-1].start, max(merged[-1].end, interval.end))
        else:
            merged.append(interval)
    return merged


def overlap(predicted: Sequence[Interval], true: Sequence[Interval]) -> Overlap | None:
    """Overlap of merged predicted and merged true intervals; None when there are none on either side.

    Args:
      predicted: windows looked at, `start <= end`.
      true: clues; those with `start >= end` are skipped.
    """
    pred = merge(predicted)
    truth = merge(x for x in true if x.start < x.end)
    if not pred or not truth:
        return None
    shared = 0.0
    for p in pred:
        for t in truth:
            length = min(p.end, t.end) - max(p.start, t.start)
            if length > 0:
                shared += length
    pred_length = sum(x.end - x.start for x in pred)
    true_length = sum(x.end - x.start for x in truth)
    # Written as `> _TINY` so that a NaN length counts as none.
    union = pred_length + true_length - shared
    iou = shared / union if union > _TINY else 0.0
    iop = shared / pred_length if pred_length > _TINY else 0.0
    iog = shared / true_length if true_length > _TINY else 0.0
    return Overlap(iou, iop, iog, iou - _centre_distance(pred, truth) ** 2)


def _centre_distance(pred: Sequence[Interval], truth: Sequence[Interval]) -> float:
    """Distance of the hulls' centres over the length of what encloses both, in [0, 1)."""
    enclosing = max(pred[-1].end, truth[-1].end) - min(pred[0].start, truth[0].start)
    if not enclosing > _TINY:
        return 0.0
    distance = (pred[0].start + pred[-1].end) / 2 - (truth[0].start + truth[-1].end) / 2
    ratio = distance / enclosing
    return ratio if math.isfinite(ratio) else 0.0
