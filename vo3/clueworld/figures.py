"""The figures of an evaluation, each with the values that it is the mean of: one a question, or one a call."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from vo3.clueworld import tasks
from vo3.evals.statistics import wilson
from vo3.rewards import score
from vo3.rewards.grounding import Interval, overlap
from vo3.trajectory import Trajectory

# Seconds [low, high) of the videos that results are told apart by.
BUCKETS = ((120, 600), (600, 1800), (1800, 3601))


@dataclasses.dataclass(frozen=True)
class Share:
    """A proportion with its 95 % Wilson interval."""

    right: int
    total: int

    @property
    def interval(self) -> tuple[float, float]:
        """(low, high); (0, 1) when there is nothing."""
        return wilson(self.right, self.total)

    def __str__(self) -> str:
        if not self.total:
            return "-"
        low, high = self.interval
        return f"{100 * self.right / self.total:5.1f} % [{100 * low:.1f}, {100 * high:.1f}] of {self.total}"


@dataclasses.dataclass(frozen=True)
class Measure:
    """What a figure is the mean of.

    Attributes:
      values: by the id of a question; of calls and of what a text says, by the id and a number behind `#`.
      share: whether each is 0 or 1.
    """

    values: dict[str, float]
    share: bool = True

    @property
    def figure(self) -> Share | float:
        """The proportion, or the mean (0 of nothing)."""
        if self.share:
            return Share(round(sum(self.values.values())), len(self.values))
        return float(np.mean(list(self.values.values()))) if self.values else 0.0


def measures(rows: Sequence[Trajectory]) -> dict[str, Measure]:
    """What the answers of a run are worth, by name; ids of the questions differ."""
    found: dict[str, Measure] = {}
    for quadrant in tasks.QUADRANTS:
        some = [t for t in rows if t.task.target.data_source == quadrant]
        part = _grounding if quadrant == tasks.GROUNDING else _answers
        found |= {f"{quadrant}: {name}": measure for name, measure in part(some).items()}
    ious = {f"{t.task.id}#{i}": iou for t in rows for i, iou in enumerate(_call_ious(t))}
    found["calls: window hits a clue (IoU > 0)"] = Measure({k: i > 0 for k, i in ious.items()})
    found["calls: mean IoU with the nearest clue"] = Measure(ious, share=False)
    needs = [t for t in rows if t.task.target.data_source in (tasks.SINGLE_TOOL, tasks.MULTI_TOOL)]
    for low, high in BUCKETS:
        some = [t for t in needs if low <= t.observations[0].end < high]
        name = f"with tool, video of {low // 60} to {high // 60} minutes"
        found[f"{name}: right"] = _each(some, is_right)
    return found


def is_right(trajectory: Trajectory) -> bool:
    """Whether the answer given is the task's, letter or word."""
    given = trajectory.answer
    return given is not None and given.strip() == trajectory.task.target.answer


def _each(
    rows: Sequence[Trajectory], value: Callable[[Trajectory], float], *, share: bool = True
) -> Measure:
    return Measure({t.task.id: value(t) for t in rows}, share)


def _answers(rows: Sequence[Trajectory]) -> dict[str, Measure]:
    """Of a quadrant: right in all, with and without options, by kind; whether calls were made as they should be."""
    kind = lambda t: tasks.kind_of(t.task.question)
    found = {
        "right": _each(rows, is_right),
        "right, with options": _each([t for t in rows if t.task.options], is_right),
        "right, open": _each([t for t in rows if not t.task.options], is_right),
    }
    for name in sorted({kind(t) for t in rows}):
        found[f"right, {name}"] = _each([t for t in rows if kind(t) == name], is_right)
    needed = any(t.task.target.clues for t in rows)
    name = "made as many calls as clues" if needed else "made no call"
    found[name] = _each(rows, lambda t: len(t.calls) == len(t.task.target.clues))
    if needed:
        slips = [t for t in rows if t.task.options and not is_right(t)]
        found["wrong, with options: but for the letter"] = _each(slips, _says_the_truth)
    return found


def _says_the_truth(trajectory: Trajectory) -> bool:
    """Whether the last think ends with the true option's text, whatever letter it gives it."""
    truth = dict(trajectory.task.options)[trajectory.task.target.answer]
    return f" {truth}, " in trajectory.turns[-1].text.partition("</think>")[0]


def _grounding(rows: Sequence[Trajectory]) -> dict[str, Measure]:
    """Overlap of the answered with the true segment; an answer that is no segment has none."""
    iou = _each(rows, lambda t: score(t, t.task.target).accuracy, share=False)
    found = {
        f"IoU >= {least}": Measure({k: i >= least for k, i in iou.values.items()})
        for least in (0.3, 0.5)
    }
    return {**found, "mean IoU": iou}


def _call_ious(trajectory: Trajectory) -> list[float]:
    """Of each call, the IoU with the clue that it meets best."""
    clues = [Interval(c.start, c.end) for c in trajectory.task.target.clues]
    windows = [Interval(c.start, c.end) for c in trajectory.calls] if clues else []
    return [max(overlap([w], [c]).iou for c in clues) for w in windows]
