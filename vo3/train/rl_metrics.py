"""What is seen of an RL step: figures of its rollouts, the log's line, alarms on signs of reward hacking."""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from vo3.rewards.grounding import Interval, overlap
from vo3.train.metrics import Row, clock
from vo3.train.policy_step import PolicyMetrics
from vo3.train.scoring import ScoredGroup, ScoredRollout


def rollout_figures(groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """Figures of all rollouts of a step, those of dropped groups too; means over rollouts unless named otherwise.

    Returns:
      reward, reward_std (within groups), accuracy, format, bonus, grounding and iou (of a rollout's calls with the clues), accuracy_with_call, accuracy_without_call, calls,
      turns, tokens (sampled), tokens_per_turn, answered, exceeded, void, lost, window (seconds a call), window_share (of the video), calls_missed
      (share of calls that touch no clue, where there are clues), calls_repeated, dropped and unreadable (shares of groups), and per data
      source accuracy/NAME, calls/NAME and grounding/NAME. A figure of nothing is left out.
    """
    every = [r for g in groups for r in g.rollouts]
    known = [r for r in every if r.lost is None]
    called = [r for r in known if r.trajectory.calls]
    quiet = [r for r in known if not r.trajectory.calls]
    turns = [t for r in every for t in r.trajectory.turns if t.role == "assistant"]
    calls = [_call_figures(r) for r in called]
    figures = {
        "reward": _mean(r.reward.total for r in known),
        "reward_std": _mean(g.spread for g in groups if g.rollouts),
        "accuracy": _mean(r.reward.accuracy for r in known),
        "format": _mean(r.reward.format for r in known),
        "bonus": _mean(r.reward.bonus for r in known),
        "grounding": _mean(r.reward.grounding for r in called),
        "iou": _mean(x for c in calls for x in c.iou),
        "accuracy_with_call": _mean(r.reward.accuracy for r in called),
        "accuracy_without_call": _mean(r.reward.accuracy for r in quiet),
        "calls": _mean(len(r.trajectory.calls) for r in known),
        "turns": _mean(sum(t.role == "assistant" for t in r.trajectory.turns) for r in known),
        "tokens": _mean(r.sampled for r in every),
        "tokens_per_turn": _mean(len(t.ids or ()) for t in turns),
        **{
            outcome: _mean(r.trajectory.outcome == outcome for r in every)
            for outcome in ("answered", "exceeded", "void")
        },
        "lost": _mean(r.lost is not None for r in every),
        "window": _mean(x for c in calls for x in c.seconds),
        "window_share": _mean(x for c in calls for x in c.shares),
        "calls_missed": _mean(x for c in calls for x in c.missed),
        "calls_repeated": _mean(x for c in calls for x in c.repeated),
        "dropped": _mean(g.dropped is not None for g in groups),
        "unreadable": _mean(g.dropped == "unreadable" for g in groups),
    }
    by_source: dict[str, list[ScoredRollout]] = collections.defaultdict(list)
    for r in known:
        by_source[r.trajectory.task.target.data_source].append(r)
    for source, rollouts in sorted(by_source.items()):
        figures[f"accuracy/{source}"] = _mean(r.reward.accuracy for r in rollouts)
        figures[f"calls/{source}"] = _mean(len(r.trajectory.calls) for r in rollouts)
        figures[f"grounding/{source}"] = _mean(
            r.reward.grounding for r in rollouts if r.trajectory.calls
        )
    return {name: value for name, value in figures.items() if value is not None}


@dataclasses.dataclass(frozen=True)
class _Calls:
    """Of a rollout's calls: seconds, share of the video, whether no clue was touched, whether it was made before; IoU of all of them with the clues."""

    seconds: list[float]
    shares: list[float]
    missed: list[bool]
    repeated: list[bool]
    iou: list[float]


def _call_figures(rollout: ScoredRollout) -> _Calls:
    trajectory = rollout.trajectory
    whole = max(trajectory.observations[0].end - trajectory.observations[0].start, 1e-6)
    clues = [Interval(c.start, c.end) for c in trajectory.task.target.clues]
    calls = trajectory.calls
    spans = [c.end - c.start for c in calls]
    windows = [Interval(c.start, c.end) for c in calls]
    met = [overlap([window], clues) for window in windows]
    together = overlap(windows, clues)
    return _Calls(
        seconds=spans,
        shares=[s / whole for s in spans],
        missed=[m.iou == 0 for m in met if m is not None],
        repeated=[c in calls[:i] for i, c in enumerate(calls)],
        iou=[] if together is None else [together.iou],
    )


def _mean(values: Any) -> float | None:
    values = [float(v) for v in values]
    return float(np.mean(values)) if values else None


def update_figures(metrics: Sequence[PolicyMetrics]) -> dict[str, float]:
    """Figures of a step's updates: of the first one, whose policy is the sampler's; ratio and clip shares over all of them. Without one, none."""
    if not metrics:
        return {}
    first = metrics[0].sums
    tokens = max(sum(float(m.sums.tokens) for m in metrics), 1.0)
    own = max(float(first.tokens), 1.0)
    each = lambda name: sum(float(getattr(m.sums, name)) for m in metrics) / tokens
    return {
        "loss": float(first.loss) / max(float(first.total), 1e-9),
        "gradient_norm": float(metrics[-1].gradient_norm),
        "entropy": float(first.entropy) / own,
        "ratio": each("ratio"),
        "ratio_max": max(float(m.sums.largest_ratio) for m in metrics),
        "clipped_low": each("clipped_low"),
        "clipped_high": each("clipped_high"),
        "kl": each("kl"),
        "gap": float(first.gap) / own,
        "gap_max": float(first.largest_gap),
        "gap_kl": float(first.drift) / own,
        "trained_tokens": float(first.tokens),
    }


@dataclasses.dataclass(frozen=True)
class StepRow(Row):
    """One line of an RL run's log."""

    def line(self, total: int) -> str:
        """As people read it."""
        v = self.values
        parts = [f"step {self.step}/{total}"]
        for name, form in (
            ("reward", "{:.3f}"),
            ("accuracy", "{:.3f}"),
            ("format", "{:.3f}"),
            ("calls", "{:.2f}"),
            ("grounding", "{:.3f}"),
            ("entropy", "{:.3f}"),
            ("loss", "{:.4f}"),
        ):
            if name in v:
                parts.append(f"{name} {form.format(v[name])}")
        parts.append(f"dropped {100 * v.get('dropped', 0):.0f} %")
        if v.get("lost") or v.get("unreadable"):
            parts.append(f"lost {100 * v.get('lost', 0):.1f} %")
        parts.append(f"gap {v.get('gap_max', 0):.1e}")
        parts.append(f"rollout {v['seconds_rollout']:.1f} s, update {v['seconds_update']:.1f} s")
        parts.append(f"{clock(v['eta'])} left")
        return "  ".join(parts)


# ---------------------------------------------------------------- alarms

WINDOW = 10  # steps that are compared with as many before them


class Alarms:
    """Signs that the policy earns reward without doing the task. They are told, and change nothing.

    A stretch of `WINDOW` steps is compared with the one before it.
    """

    def __init__(self, workdir: epath.PathLike | None = None, *, start: int = 0):
        """Takes up the log of a run that goes on from step `start`."""
        self._rows: collections.deque[Mapping[str, float]] = collections.deque(maxlen=2 * WINDOW)
        file = None if workdir is None else epath.Path(workdir) / "log.jsonl"
        if file is not None and file.exists():
            for line in file.read_text().splitlines():
                try:
                    row = json.loads(line)
                except ValueError:  # the line that was being written when the run was killed
                    continue
                if row.get("step", start + 1) <= start:
                    self._rows.append(row)

    def add(self, values: Mapping[str, float]) -> list[str]:
        """The alarms that a step's figures raise."""
        self._rows.append(values)
        if len(self._rows) < 2 * WINDOW:
            return []
        rows = list(self._rows)
        before, now = _Stretch(rows[:WINDOW]), _Stretch(rows[WINDOW:])
        told = []
        if now["window_share"] > max(0.25, 1.5 * before["window_share"]):
            told.append(
                f"windows grow: a call covers {100 * now['window_share']:.0f} % of its video, "
                f"{100 * before['window_share']:.0f} % before"
            )
        if now["calls"] > 1.2 * before["calls"] and now["accuracy"] <= before["accuracy"]:
            told.append(
                f"calls without use: {now['calls']:.2f} a rollout, {before['calls']:.2f} before, and accuracy did not rise "
                f"({before['accuracy']:.3f} to {now['accuracy']:.3f})"
            )
        if now["calls_missed"] > max(0.5, before["calls_missed"] + 0.1):
            told.append(f"{100 * now['calls_missed']:.0f} % of the calls touch no clue")
        if now["calls_repeated"] > max(0.1, 2 * before["calls_repeated"]):
            told.append(f"{100 * now['calls_repeated']:.0f} % of the calls repeat an earlier one")
        up = now["format"] - before["format"], before["accuracy"] - now["accuracy"]
        if up[0] > 0.01 and up[1] > 0.03:
            told.append(
                f"format rises ({before['format']:.3f} to {now['format']:.3f}) while accuracy falls "
                f"({before['accuracy']:.3f} to {now['accuracy']:.3f})"
            )
        return told


class _Stretch:
    """Means over rows that have the figure; 0 where none has."""

    def __init__(self, rows: Sequence[Mapping[str, float]]):
        self._rows = rows

    def __getitem__(self, name: str) -> float:
        return (
            _mean(row[name] for row in self._rows if isinstance(row.get(name), float | int)) or 0.0
        )
