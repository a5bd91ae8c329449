"""Intervals of seconds: cleaned, merged, compared."""

from __future__ import annotations

from collections.abc import Sequence

from vo3.trajectory import Clue


def merge(clues: Sequence[Clue], *, gap: float) -> tuple[Clue, ...]:
    """Clues in order, those that overlap or lie at most `gap` seconds apart as one; texts are joined."""
    merged: list[Clue] = []
    for clue in sorted(clues, key=lambda c: (c.start, c.end)):
        if merged and clue.start - merged[-1].end <= gap:
            last = merged[-1]
            texts = [last.text] + ([clue.text] if clue.text not in last.text else [])
            merged[-1] = Clue(last.start, max(last.end, clue.end), "; ".join(t for t in texts if t))
        else:
            merged.append(clue)
    return tuple(merged)


def covered(windows: Sequence[tuple[float, float]]) -> float:
    """Seconds in at least one of the windows."""
    clues = merge([Clue(a, b) for a, b in windows if b > a], gap=0.0)
    return sum(c.end - c.start for c in clues)


def overlap(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Seconds in both."""
    return max(0.0, min(a[1], b[1]) - max(a[0], b[0]))


def iou(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Intersection over union; 0 for two empty windows."""
    both = overlap(a, b)
    union = (a[1] - a[0]) + (b[1] - b[0]) - both
    return both / union if union > 0 else 0.0


def widened(window: tuple[float, float], *, least: float, duration: float) -> tuple[float, float]:
    """The window, at least `least` seconds long, inside [0, duration]."""
    start, end = max(0.0, window[0]), min(window[1], duration)
    if end - start < least:
        middle = (start + end) / 2
        start = min(max(0.0, middle - least / 2), max(0.0, duration - least))
        end = min(start + least, duration)
    return start, end
