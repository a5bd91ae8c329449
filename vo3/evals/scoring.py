"""From trajectories to verdicts, and from verdicts to the benchmark's metric with its tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from vo3.evals import statistics
from vo3.evals.benchmarks.base import Benchmark
from vo3.evals.extraction import Scorer
from vo3.evals.journal import failure_of
from vo3.evals.questions import Question
from vo3.evals.statistics import Figure
from vo3.rewards.answer import segment_pair
from vo3.trajectory import Trajectory

# (question, answer) -> right, or None when there is no judgement.
Judge = Callable[[Question, str], bool | None]
THRESHOLDS = (0.3, 0.5, 0.7)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """How a question was answered.

    Attributes:
      question: the question.
      right: 1 or 0; for a time window its IoU with the true one.
      given: the letter, text or window that was read from the answer; None when none could be read.
      how: "rule", "judge", "none" (nothing to score), "failed" (never asked), "unjudged" (needs a judge, and there is none).
    """

    question: Question
    right: float
    given: str | None
    how: str


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of a table: a group of a category, or a metric."""

    category: str
    group: str
    figure: Figure


@dataclasses.dataclass(frozen=True)
class Score:
    """A benchmark's result.

    Attributes:
      headline: the benchmark's metric.
      rows: its parts by category.
      apart: what is no part of the headline.
      unread: answers given that no rule could read.
      unjudged: answers that only a judge could score.
    """

    headline: Figure
    rows: tuple[Row, ...]
    apart: tuple[Row, ...]
    unread: int
    unjudged: int


def grade(
    question: Question, trajectory: Trajectory, scorer: Scorer, judge: Judge | None = None
) -> Verdict:
    """Scores one answer by a rule; where the rule finds nothing, by the judge if there is one."""
    if failure_of(trajectory) is not None:
        return Verdict(question, 0.0, None, "failed")
    text = trajectory.answer
    if text is None:
        return Verdict(question, 0.0, None, "none")
    if question.kind == "segment":
        return _segment(question, text)
    true = question.task.target.answer if question.task.target else ""
    if question.kind == "choice":
        letter = scorer.letter(
            text, question.letters, tuple((question.task.options or {}).values())
        )
        if letter is None and judge is not None and (said := judge(question, text)) is not None:
            return Verdict(question, float(said), text, "judge")
        return Verdict(question, float(letter == true), letter, "rule")
    if judge is not None and (said := judge(question, text)) is not None:
        return Verdict(question, float(said), text, "judge")
    if scorer.open is None:
        return Verdict(question, 0.0, text, "unjudged")
    return Verdict(question, float(scorer.open(text, true)), text, "rule")


def _segment(question: Question, text: str) -> Verdict:
    pair = segment_pair(text)
    if pair is None or not all(isinstance(x, int | float) and abs(x) < 1e9 for x in pair):
        return Verdict(question, 0.0, None, "rule")
    start, end = sorted(map(float, pair))
    truth = question.task.target.clues[0]
    shared = min(end, truth.end) - max(start, truth.start)
    union = max(end, truth.end) - min(start, truth.start)
    iou = shared / union if shared > 0 else 0.0
    return Verdict(question, iou, f"{start:g} - {end:g}", "rule")


def summarise(benchmark: Benchmark, verdicts: Sequence[Verdict]) -> Score:
    """The benchmark's metric and tables over all verdicts, failures included."""
    counted = [v for v in verdicts if v.question.counted]
    apart = [v for v in verdicts if not v.question.counted]
    if benchmark.kind == "grounding":
        headline, rows = _grounding(counted)
    else:
        headline, rows = _accuracy(benchmark, counted)
    told = []
    for (category, group), some in _groups(apart).items():
        scored = [v for v in some if v.how != "unjudged"]
        told.append(Row(category, group, _share(scored)))
    return Score(
        headline,
        tuple(rows),
        tuple(told),
        unread=sum(v.how == "rule" and v.given is None for v in verdicts),
        unjudged=sum(v.how == "unjudged" for v in verdicts),
    )


def _accuracy(benchmark: Benchmark, verdicts: Sequence[Verdict]) -> tuple[Figure, list[Row]]:
    groups = _groups(verdicts)
    rows = [Row(category, group, _share(some)) for (category, group), some in groups.items()]
    if benchmark.average == "questions":
        return _share(verdicts), rows
    parts = [row.figure for row in rows if row.category == benchmark.average]
    return statistics.mean_of_groups([(p.right or 0, p.total) for p in parts]), rows


def _grounding(verdicts: Sequence[Verdict]) -> tuple[Figure, list[Row]]:
    """R@IoU over all questions; mIoU over the answers that name a window, as the published evaluation has it."""
    recalls = {
        t: statistics.proportion(sum(v.right >= t for v in verdicts), len(verdicts))
        for t in THRESHOLDS
    }
    rows = [Row("metric", f"R@{t}", figure) for t, figure in recalls.items()]
    named = [v.right for v in verdicts if v.given is not None]
    rows.append(Row("metric", "mIoU of answered", statistics.mean(named)))
    rows.append(Row("metric", "mIoU of all", statistics.mean([v.right for v in verdicts])))
    return recalls[0.5], rows


def _groups(verdicts: Sequence[Verdict]) -> Mapping[tuple[str, str], list[Verdict]]:
    """Verdicts by (category, group), categories in the order of the questions, groups by name."""
    found: dict[tuple[str, str], list[Verdict]] = {}
    order: dict[str, int] = {}
    for verdict in verdicts:
        for category, groups in verdict.question.categories.items():
            order.setdefault(category, len(order))
            for group in groups:
                found.setdefault((category, group), []).append(verdict)
    return dict(sorted(found.items(), key=lambda item: (order[item[0][0]], item[0][1])))


def _share(verdicts: Sequence[Verdict]) -> Figure:
    return statistics.proportion(sum(v.right == 1.0 for v in verdicts), len(verdicts))
