"""The Verifiable Trajectory-Guided Reward (Video-o3, arXiv 2601.23224; both published recipes).

    total = w_acc * accuracy + w_bonus * accuracy * multiplier + w_format * format

The multiplier is given only to rollouts that are right and well-formed (accuracy = format = 1). With d the decay, n the
number of well-placed call turns, m the number of true clues of the row, g the overlap of calls and clues:

    rule      what it wants                       multiplier
    look      find the single clue in few calls   n >= 1: (1 - d max(0, n - m)) (g2 + 1) / 2      recipe qwen2_5_vl
                                                  n >= 1: (1 - d (n - 1)) (g1 + 1) / 2            recipe qwen3_vl
    gather    find several clues, calls are free  n >= 1: (g2 + 1) / 2
    refrain   answer without looking              (1 - d n) 0.75, qwen3_vl (1 - 2 d n) 0.75
    free      either way                          0.5
    segment   answer with a segment               none; accuracy is the segment's IoU with the first clue

Free-form rows (those without options) are scored by the same match; `RewardPolicy.free_form` names two additions of ours.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

from vo3.rewards.answer import last_answer, letter_accuracy, segment_accuracy
from vo3.rewards.format import format_score, segment_format
from vo3.rewards.free_form import numeric, rouge
from vo3.rewards.grounding import Interval, Overlap, called_intervals, overlap
from vo3.trajectory import Clue, Target, Trajectory

Recipe = Literal["qwen2_5_vl", "qwen3_vl"]
FreeForm = Literal["letter", "rouge", "numeric"]
Rule = Literal["look", "gather", "refrain", "free", "segment"]

# data_source (and its alias) -> rule.
DATA_SOURCES: Mapping[str, Rule] = {
    "clue_single_w_tool": "look",
    "tool_reward_with_round_penalty": "look",
    "clue_multi_w_tool": "gather",
    "tool_reward_without_round_penalty": "gather",
    "clue_single_wo_tool": "refrain",
    "tool_penalty_single_turn": "refrain",
    "clue_multi_wo_tool": "free",
    "tool_free_form": "free",
    "temporal_grounding": "segment",
}


@dataclasses.dataclass(frozen=True)
class RewardPolicy:
    """Every choice of the reward.

    Attributes:
      recipe: which of the two published multiplier tables.
      accuracy_weight, format_weight: weights of the two base terms; they do not change when the bonus is given.
      bonus_weight: of the bonus; 0 rewards accuracy and format alone.
      decay: d, what one call too many takes off the multiplier.
      data_sources: data_source -> rule.
      free_form: how questions without options are scored. `letter`: as every other; `rouge`: accuracy in [0, 1], so that a bonus is
        for the very words only; `numeric`: equal as numbers or formulas.
      time_limit: seconds for one numeric check.
      workers: processes for them.
    """

    recipe: Recipe = "qwen2_5_vl"
    accuracy_weight: float = 1.0
    format_weight: float = 1.0
    bonus_weight: float = 1.0
    decay: float = 0.05
    data_sources: Mapping[str, Rule] = dataclasses.field(default_factory=lambda: dict(DATA_SOURCES))
    free_form: FreeForm = "letter"
    time_limit: float = 5.0
    workers: int = 1

    def __post_init__(self) -> None:
        if self.recipe not in get_args(Recipe):
            raise ValueError(f"unknown reward recipe {self.recipe!r}; one of {get_args(Recipe)}")
        if self.free_form not in get_args(FreeForm):
            raise ValueError(f"unknown free_form {self.free_form!r}; one of {get_args(FreeForm)}")
        if not self.time_limit > 0:
            raise ValueError(f"reward time_limit must be positive seconds, got {self.time_limit}")
        wrong = sorted(set(self.data_sources.values()) - set(get_args(Rule)))
        if wrong:
            raise ValueError(f"unknown reward rules {wrong}; one of {get_args(Rule)}")
        for name in ("accuracy_weight", "format_weight", "bonus_weight", "decay"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"reward {name} must be finite, got {getattr(self, name)}")

    def rule(self, data_source: str) -> Rule:
        """The rule of a data source.

        Raises:
          ValueError: an unknown data source.
        """
        if data_source not in self.data_sources:
            raise ValueError(
                f"no reward for data_source {data_source!r}; known: {sorted(self.data_sources)}. "
                "Name it in RewardPolicy(data_sources=...) or correct the row"
            )
        return self.data_sources[data_source]


@dataclasses.dataclass(frozen=True)
class RewardBreakdown:
    """A reward and its parts.

    Attributes:
      accuracy: 0 or 1; an IoU for temporal grounding.
      format: in [0, 1].
      bonus: accuracy times the multiplier, before its weight.
      grounding: overlap of calls and clues, in [0, 1], whether or not it was paid for (0 where either side is empty).
      total: the weighted sum.
    """

    accuracy: float
    format: float
    bonus: float
    grounding: float
    total: float


def score(
    trajectory: Trajectory, target: Target, policy: RewardPolicy = RewardPolicy()
) -> RewardBreakdown:
    """Reward of a rollout.

    Args:
      trajectory: only the assistant's texts are read, and whether the task has options.
      target: the answer, the clues and the data source.
      policy: weights, decay and tables.

    Raises:
      ValueError: an unknown data source; a grounding target without a clue.
    """
    turns = [t.text for t in trajectory.turns if t.role == "assistant"]
    return _score(turns, target, policy, free=not trajectory.task.options)


def score_row(
    row: Mapping[str, Any], turns: Sequence[str], policy: RewardPolicy = RewardPolicy()
) -> RewardBreakdown:
    """Reward of the assistant's texts `turns` on an RL row.

    Args:
      row: {"data_source", "solution": {"answer", "clue": [{"timestamp": [t0, t1]}, ...]}, ...}.
      turns: the assistant's texts in order.
      policy: weights, decay and tables.

    Raises:
      ValueError: a row without these fields, or an unknown data source.
    """
    if isinstance(turns, str):
        raise ValueError("turns is one string; pass the list of the assistant's texts")
    return _score(list(turns), target_from_row(row), policy, free=not row.get("options"))


def target_from_row(row: Mapping[str, Any]) -> Target:
    """The target of an RL row (`solution.answer`, `solution.clue[].timestamp`, `data_source`).

    Raises:
      ValueError: a field is missing or of another form; the message names the row and the field.
    """
    name = f"RL row {row.get('doc_id', row.get('id', '?'))!r}"
    solution = row.get("solution")
    if not isinstance(solution, Mapping) or "data_source" not in row:
        raise ValueError(f"{name} needs 'data_source' and a 'solution' object")
    answer = solution.get("answer", "")
    if not isinstance(answer, str):
        raise ValueError(f"{name}: solution.answer must be text, got {type(answer).__name__}")
    clues = []
    for i, clue in enumerate(solution.get("clue") or ()):
        try:
            start, end = (float(x) for x in clue["timestamp"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(
                f"{name}: solution.clue[{i}].timestamp must be two seconds, got {clue!r}"
            ) from error
        clues.append(Clue(start, end, str(clue.get("text", ""))))
    return Target(answer=answer, clues=tuple(clues), data_source=row["data_source"])


def _score(
    turns: Sequence[str], target: Target, policy: RewardPolicy, *, free: bool
) -> RewardBreakdown:
    rule = policy.rule(target.data_source)
    truth = [Interval(clue.start, clue.end) for clue in target.clues]
    if rule == "segment":
        return _score_segment(turns, truth, policy)
    kind = policy.free_form if free else "letter"
    accuracy = _accuracy(turns[-1], target.answer, kind, policy) if turns else 0.0
    form = format_score(turns)
    met = overlap(called_intervals(turns), truth)
    multiplier = _MULTIPLIERS[rule](form.call_turns, len(truth), met, policy)
    bonus = multiplier if accuracy == 1.0 and form.score == 1.0 else 0.0
    return RewardBreakdown(
        accuracy=accuracy,
        format=form.score,
        bonus=bonus,
        grounding=_g(met, rule, policy),
        total=policy.accuracy_weight * accuracy
        + policy.format_weight * form.score
        + policy.bonus_weight * bonus,
    )


def _accuracy(text: str, answer: str, kind: FreeForm, policy: RewardPolicy) -> float:
    matched = letter_accuracy(text, answer)
    given = last_answer(text)
    if kind == "letter" or matched == 1.0 or given is None:
        return matched
    if kind == "rouge":
        return rouge(given, answer)
    return numeric(given, answer, time_limit=policy.time_limit, workers=policy.workers)


def _score_segment(
    turns: Sequence[str], truth: Sequence[Interval], policy: RewardPolicy
) -> RewardBreakdown:
    if not truth:
        raise ValueError("a temporal grounding target needs one clue; got none")
    accuracy = segment_accuracy(turns[-1], truth[0]) if turns else 0.0
    form = segment_format(turns[-1]) if turns else 0.0
    total = policy.accuracy_weight * accuracy + policy.format_weight * form
    return RewardBreakdown(accuracy, form, 0.0, accuracy, total)


def _g(met: Overlap | None, rule: Rule, policy: RewardPolicy) -> float:
    if met is None:
        return 0.0
    return met.g1 if rule == "look" and policy.recipe == "qwen3_vl" else met.g2


def _look(n: int, m: int, met: Overlap | None, policy: RewardPolicy) -> float:
    extra = n - 1 if policy.recipe == "qwen3_vl" else max(0, n - m)
    return (1 - policy.decay * extra) * (_g(met, "look", policy) + 1) / 2 if n >= 1 else 0.0


def _gather(n: int, m: int, met: Overlap | None, policy: RewardPolicy) -> float:
    return (_g(met, "gather", policy) + 1) / 2 if n >= 1 else 0.0


def _refrain(n: int, m: int, met: Overlap | None, policy: RewardPolicy) -> float:
    weight = 2 if policy.recipe == "qwen3_vl" else 1
    return (1 - weight * policy.decay * n) * 0.75


def _free(n: int, m: int, met: Overlap | None, policy: RewardPolicy) -> float:
    return 0.5


# rule -> multiplier(n, m, overlap, policy).
_MULTIPLIERS: Mapping[Rule, Callable[[int, int, Overlap | None, RewardPolicy], float]] = {
    "look": _look,
    "gather": _gather,
    "refrain": _refrain,
    "free": _free,
}
