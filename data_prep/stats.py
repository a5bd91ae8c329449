"""Figures for reports: shares with their intervals, agreement, histograms."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Share:
    """A proportion with its 95 % Wilson interval."""

    hits: int
    total: int

    @property
    def value(self) -> float:
        """Hits of total; 0 when there is nothing."""
        return self.hits / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """(low, high); (0, 1) when there is nothing. Wilson 1927, z = 1.96."""
        if not self.total:
            return 0.0, 1.0
        z, n, p = 1.959964, self.total, self.value
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)

    def __str__(self) -> str:
        if not self.total:
            return "-"
        low, high = self.interval
        return f"{100 * self.value:.1f} % [{100 * low:.1f}, {100 * high:.1f}] of {self.total}"


def kappa(pairs: Sequence[tuple[str, str]]) -> float | None:
    """Cohen's kappa of two raters' labels of the same items; None when it is not defined (no items, or no variation)."""
    if not pairs:
        return None
    n = len(pairs)
    agreed = sum(a == b for a, b in pairs) / n
    labels = {label for pair in pairs for label in pair}
    chance = sum(
        sum(a == label for a, _ in pairs) / n * sum(b == label for _, b in pairs) / n
        for label in labels
    )
    return None if math.isclose(chance, 1.0) else (agreed - chance) / (1 - chance)


@dataclasses.dataclass(frozen=True)
class Histogram:
    """Counts between edges: `counts[i]` values lie in [edges[i], edges[i + 1])."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


def histogram(values: Sequence[float], edges: Sequence[float]) -> Histogram:
    """Values by edges; what lies outside is put into the first or last bin."""
    counts = [0] * (len(edges) - 1)
    for value in values:
        at = sum(value >= edge for edge in edges) - 1
        counts[min(max(at, 0), len(counts) - 1)] += 1
    return Histogram(tuple(edges), tuple(counts))
