"""The plot of a sweep: accuracy against what it costs, one line for each mode, drawn as SVG without any library."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from vo3.viewer.markup import Markup, tag

WIDTH, HEIGHT = 560, 330
LEFT, RIGHT, TOP, BOTTOM = 44, 64, 14, 44
COLORS = {"tools": 1, "think": 2, "direct": 4}  # --c1, --c2, --c4 of the style sheet


@dataclasses.dataclass(frozen=True)
class Point:
    """A result.

    Attributes:
      cost: tokens or seconds, above 0.
      value, low, high: percent.
    """

    cost: float
    value: float
    low: float
    high: float


def draw(series: dict[str, Sequence[Point]], *, label: str, unit: str) -> Markup:
    """Lines over a logarithmic cost, with 95 % intervals.

    Args:
      series: mode -> points.
      label: of the cost.
      unit: of a tick, as "s"; may be empty.
    """
    points = [p for some in series.values() for p in some]
    costs = [p.cost for p in points]
    low, high = min(costs), max(costs)
    if high / low < 1.5:  # one cost alone still needs an axis
        low, high = low / 1.5, high * 1.5
    pad = (high / low) ** 0.06
    low, high = low / pad, high * pad
    floor = 10 * math.floor(min(p.low for p in points) / 10)
    top = 10 * math.ceil(max(p.high for p in points) / 10)

    def x(cost: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log(cost / low) / math.log(high / low)

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (top - value) / max(top - floor, 1)

    step = 10 if top - floor <= 60 else 20
    grid = []
    for value in range(floor, top + 1, step):
        grid.append(_line(LEFT, y(value), WIDTH - RIGHT, y(value), "grid"))
        grid.append(_text(LEFT - 8, y(value) + 4, f"{value}", anchor="end"))
    for cost in ticks(low, high):
        grid.append(_text(x(cost), HEIGHT - BOTTOM + 20, f"{cost:,.10g}{unit}", anchor="middle"))
        grid.append(_line(x(cost), HEIGHT - BOTTOM, x(cost), HEIGHT - BOTTOM + 4, "grid"))
    grid.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, label, anchor="middle"))
    lines, ends = [], []
    for mode, some in series.items():
        some = sorted(some, key=lambda p: p.cost)
        path = " ".join(
            f"{'M' if i == 0 else 'L'}{x(p.cost):.1f} {y(p.value):.1f}" for i, p in enumerate(some)
        )
        whiskers = [_line(x(p.cost), y(p.low), x(p.cost), y(p.high), "whisker") for p in some]
        dots = [
            _dot(x(p.cost), y(p.value), f"{mode}: {p.value:.1f} % at {p.cost:,.4g}{unit}")
            for p in some
        ]
        lines.append(
            tag(
                "g",
                whiskers,
                tag("path", d=path, class_="line"),
                dots,
                class_=f"c{COLORS.get(mode, 3)}",
            )
        )
        ends.append((y(some[-1].value), x(some[-1].cost), mode))
    names = [
        tag("g", _text(at + 10, height + 4, mode, class_="name"), class_=f"c{COLORS.get(mode, 3)}")
        for (_, at, mode), height in zip(
            sorted(ends), spread([e[0] for e in sorted(ends)]), strict=True
        )
    ]
    spoken = "; ".join(
        f"{mode}: " + ", ".join(f"{p.value:.1f} at {p.cost:,.4g}{unit}" for p in sorted(some, key=lambda p: p.cost))
        for mode, some in series.items()
    )  # fmt: skip
    return tag(
        "svg",
        grid,
        lines,
        names,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=f"accuracy in percent against {label}. {spoken}",
    )


def ticks(low: float, high: float) -> list[float]:
    """Round costs between two, at most six, evenly spread on a logarithmic axis."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        found = [f * 10.0**p for p in powers for f in factors if low <= f * 10.0**p <= high]
        if len(found) <= 6:
            break
    if len(found) >= 2:
        return found
    # A narrow range: two round numbers near its ends.
    digits = 1 - math.floor(math.log10(high - low))
    return sorted({round(low + (high - low) * share, digits) for share in (0.15, 0.5, 0.85)})


def spread(heights: Sequence[float], gap: float = 15.0) -> list[float]:
    """Ascending heights moved apart to at least `gap`, so that names do not cover each other."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + gap) if placed else height)
    return placed


def _line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    return tag("path", d=f"M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}", class_=class_)


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", class_: str | None = None
) -> Markup:
    return tag("text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, class_=class_)


def _dot(x: float, y: float, title: str) -> Markup:
    return tag("circle", tag("title", title), cx=f"{x:.1f}", cy=f"{y:.1f}", r=5)
