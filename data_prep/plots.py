"""Plots as SVG that follow the page's colours: bars, histograms, a funnel."""

from __future__ import annotations

from collections.abc import Sequence

from data_prep.stats import Histogram
from vo3.viewer.markup import Markup, tag

_WIDTH = 520


def bars(rows: Sequence[tuple[str, float, str]], *, what: str) -> Markup:
    """Horizontal bars: (name, length, words at its end)."""
    longest = max([length for _, length, _ in rows], default=0) or 1
    body = [
        tag(
            "div",
            tag("span", name, class_="name"),
            tag("span", tag("i", style=f"width:{100 * length / longest:.2f}%"), class_="track"),
            tag("span", words, class_="value"),
            class_="bar-row",
        )
        for name, length, words in rows
    ]
    return tag("div", body, class_="bars", role="img", aria_label=what)


def columns(data: Histogram, names: Sequence[str], *, what: str) -> Markup:
    """A histogram as columns, each with its count above and its range below."""
    count = len(data.counts)
    tallest = max(data.counts, default=0) or 1
    height, top, bottom = 130, 16, 20
    step = _WIDTH / max(count, 1)
    parts = []
    for number, (value, name) in enumerate(zip(data.counts, names, strict=True)):
        tall = height * value / tallest
        x, y = number * step, top + height - tall
        parts.append(
            tag(
                "rect",
                x=f"{x + 2:.1f}",
                y=f"{y:.1f}",
                width=f"{step - 4:.1f}",
                height=f"{tall:.1f}",
            )
        )
        middle = f"{x + step / 2:.1f}"
        if value:
            parts.append(tag("text", f"{value:,}", x=middle, y=f"{y - 4:.1f}", class_="count"))
        parts.append(tag("text", name, x=middle, y=f"{top + height + 14}", class_="tick"))
    return tag(
        "svg",
        tag("line", x1="0", x2=str(_WIDTH), y1=str(top + height), y2=str(top + height)),
        parts,
        viewBox=f"0 0 {_WIDTH} {top + height + bottom}",
        class_="columns",
        role="img",
        aria_label=what,
    )


def stacked(rows: Sequence[tuple[str, Sequence[tuple[str, int]]]], *, what: str) -> Markup:
    """Rows of stacked shares: (name, ((class, count), ...)); every row is 100 % wide."""
    body = []
    for name, parts in rows:
        total = sum(count for _, count in parts) or 1
        pieces = [
            tag(
                "i",
                class_=kind,
                style=f"width:{100 * count / total:.2f}%",
                title=f"{kind}: {count:,}",
            )
            for kind, count in parts
            if count
        ]
        body.append(
            tag(
                "div",
                tag("span", name, class_="name"),
                tag("span", pieces, class_="track"),
                tag("span", f"{sum(c for _, c in parts):,}", class_="value"),
                class_="bar-row",
            )
        )
    return tag("div", body, class_="bars stacked", role="img", aria_label=what)
