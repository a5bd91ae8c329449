"""Intervals and tests for proportions: Wilson's interval, a mean of group accuracies, McNemar's exact test."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

Z95 = 1.959963984540054  # the normal's 97.5 % point


@dataclasses.dataclass(frozen=True)
class Figure:
    """A value in percent with its 95 % interval.

    Attributes:
      value: percent; nan when there is nothing to count.
      low, high: the interval, percent.
      total: questions behind it.
      right: how many of them are right; None where the value is no proportion of them.
    """

    value: float
    low: float
    high: float
    total: int
    right: int | None = None

    def __str__(self) -> str:
        if not self.total:
            return "-"
        return f"{self.value:.1f} [{self.low:.1f}, {self.high:.1f}] of {self.total:,}"


def wilson(right: float, total: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a proportion, in [0, 1]; (0, 1) when nothing was counted."""
    if total <= 0:
        return 0.0, 1.0
    share, z2 = right / total, Z95 * Z95
    middle = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = (
        Z95 / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total * total))
    )
    # At the ends the two terms are equal on paper; rounding must not leave 1e-19 of a difference.
    low = 0.0 if right <= 0 else max(middle - half, 0.0)
    return low, 1.0 if right >= total else min(middle + half, 1.0)


def proportion(right: int, total: int) -> Figure:
    """Accuracy in percent with Wilson's interval."""
    low, high = wilson(right, total)
    value = 100 * right / total if total else math.nan
    return Figure(value, 100 * low, 100 * high, total, right)


def mean_of_groups(groups: Sequence[tuple[int, int]]) -> Figure:
    """The unweighted mean of group accuracies, as MLVU's M-Avg.

    The interval is normal, from the variances of independent groups, each with two right and two wrong answers added
    (Agresti and Coull 1998), so that a group of all right answers does not count as certain.

    Args:
      groups: (right, total) of each group; groups without questions are left out.
    """
    some = [(right, total) for right, total in groups if total]
    if not some:
        return Figure(math.nan, 0.0, 100.0, 0)
    value = sum(right / total for right, total in some) / len(some)
    variance = 0.0
    for right, total in some:
        share = (right + 2) / (total + 4)
        variance += share * (1 - share) / (total + 4)
    half = Z95 * math.sqrt(variance) / len(some)
    low, high = max(value - half, 0.0), min(value + half, 1.0)
    return Figure(100 * value, 100 * low, 100 * high, sum(total for _, total in some))


def mean(values: Sequence[float]) -> Figure:
    """The mean of values in [0, 1], in percent, with the normal interval of its standard error."""
    n = len(values)
    if not n:
        return Figure(math.nan, 0.0, 100.0, 0)
    average = sum(values) / n
    spread = math.sqrt(sum((v - average) ** 2 for v in values) / (n - 1) / n) if n > 1 else 1.0
    low, high = max(average - Z95 * spread, 0.0), min(average + Z95 * spread, 1.0)
    return Figure(100 * average, 100 * low, 100 * high, n)


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p-value that two models are equally good on the same questions.

    Under the null a question on which just one of them is right falls to either with probability 1/2: twice the binomial
    tail, at most 1 (McNemar 1947, exact form).

    Args:
      only_first, only_second: questions that only the first, or only the second, answered rightly.
    """
    n, fewer = only_first + only_second, min(only_first, only_second)
    if n == 0:
        return 1.0
    tail = sum(math.comb(n, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**n)  # integers: exact until the last division
