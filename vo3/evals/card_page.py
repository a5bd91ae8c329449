"""A result card as a self-contained page."""

from __future__ import annotations

import dataclasses
import importlib.resources
import math
from collections.abc import Iterable
from typing import Any

from vo3.evals.card_text import HOW, count, dialect, facts, interval, percent, warnings
from vo3.evals.published import OURS
from vo3.viewer.markup import Markup, join, tag
from vo3.viewer.page import document


def page(card: dict[str, Any]) -> str:
    """The card as one HTML document that fetches nothing."""
    score, bench = card["score"], card["benchmark"]
    about = tag(
        "p",
        tag("span", card["settings"]["checkpoint"]["name"]),
        tag("span", HOW[card["mode"]]),
        tag("span", f"dialect {dialect(card)}"),
        tag("span", f"{bench['questions']:,} questions"),
        class_="eyebrow",
    )
    figure = tag(
        "p",
        tag("strong", percent(score)),
        tag("span", f"{score['metric']}, 95\u00a0% {interval(score)}"),
        class_="figure",
    )
    told = [tag("li", warning) for warning in warnings(card)]
    header = tag(
        "header",
        about,
        tag("h1", bench["title"]),
        figure,
        tag("ul", told, class_="warnings") if told else None,
    )
    main = tag(
        "main",
        tag("style", Markup(css())),
        header,
        _ladder(card),
        _table("By category", card["rows"]),
        _table("Apart from the metric", card["apart"]),
        _others(card),
        *(_facts(title, items) for title, items in facts(card)),
        _failures(card),
        class_="card",
    )
    return document(f"{bench['title']} {percent(score)}", main, script=False)


def css() -> str:
    """The style of cards, plots and comparisons, on top of the viewer's."""
    return importlib.resources.files("vo3.evals").joinpath("card.css").read_text("utf-8")


@dataclasses.dataclass(frozen=True)
class Scale:
    """The part of 0 to 100 % that a column of bars shows."""

    low: float = 0.0
    high: float = 100.0

    @classmethod
    def over(cls, figures: Iterable[dict[str, Any]]) -> Scale:
        """Whole tens around figures and their intervals."""
        some = [f for f in figures if f["value"] is not None]
        low = min((f["low"] for f in some), default=0.0)
        high = max((f["high"] for f in some), default=100.0)
        return cls(10.0 * math.floor(low / 10), max(10.0 * math.ceil(high / 10), 10.0))

    def at(self, value: float) -> float:
        """Where a value lies, percent of the column."""
        return 100 * (value - self.low) / max(self.high - self.low, 1e-9)

    @property
    def ends(self) -> Markup:
        """A cell that names both ends, for the head of the column."""
        return tag("th", tag("span", f"{self.low:g}"), tag("span", f"{self.high:g}"), class_="ends")


def bar(figure: dict[str, Any], scale: Scale = Scale()) -> Markup:
    """The value as a dot on a line, with its interval."""
    if figure["value"] is None:
        return tag("span", "")
    low, high = scale.at(figure["low"]), scale.at(figure["high"])
    return tag(
        "span",
        tag("i", style=f"left:{low:.2f}%;width:{max(high - low, 0.0):.2f}%"),
        tag("b", style=f"left:{scale.at(figure['value']):.2f}%"),
        class_="interval",
        aria_hidden="true",
    )


def _ladder(card: dict[str, Any]) -> Markup | None:
    """This result among the published ones, in order."""
    if not card["published"]:
        return None
    rows = [
        (value, name, {"value": value, "low": value, "high": value}, False)
        for name, value in card["published"]["models"].items()
    ]
    score = card["score"]
    rows.append((score["value"] or 0.0, "this result", score, True))
    rows.sort(key=lambda row: -row[0])
    scale = Scale.over(figure for _, _, figure, _ in rows)
    lines = [
        tag(
            "tr",
            tag("th", name, scope="row"),
            tag("td", percent(figure)),
            tag("td", interval(figure) if ours else ""),
            tag("td", bar(figure, scale), class_="wide"),
            class_="this" if ours else "compared" if name == OURS else None,
        )
        for _, name, figure, ours in rows
    ]
    head = tag("tr", tag("th", colspan=3), scale.ends, class_="group")
    note = f"{card['published']['metric']}; {card['published']['source']}."
    return tag(
        "section",
        tag("h2", "Beside the published figures"),
        tag("p", note, class_="spoken"),
        tag("table", tag("tbody", head, lines), class_="figures"),
    )


def _table(title: str, rows: Iterable[dict[str, Any]]) -> Markup | None:
    rows = list(rows)
    if not rows:
        return None
    lines, category, scale = [], None, Scale()
    for row in rows:
        if row["category"] != category:
            head = tag("th", row["category"], colspan=4, scope="rowgroup")
            # The ends once, over the first group.
            ends = tag("th") if category is not None else scale.ends
            category = row["category"]
            lines.append(tag("tr", head, ends, class_="group"))
        lines.append(
            tag(
                "tr",
                tag("th", row["group"], scope="row"),
                tag("td", percent(row)),
                tag("td", interval(row)),
                tag("td", count(row)),
                tag("td", bar(row), class_="wide"),
            )
        )
    return tag("section", tag("h2", title), tag("table", tag("tbody", lines), class_="figures"))


def _others(card: dict[str, Any]) -> Markup | None:
    if not card["other_scorers"]:
        return None
    own = card["scorer"] | card["score"] | {"unread": card["unread"]}
    scale = Scale.over([own, *card["other_scorers"]])
    lines = [
        tag(
            "tr",
            tag("th", s["name"], scope="row"),
            tag("td", percent(s)),
            tag("td", interval(s)),
            tag("td", f"{s['unread']:,} unread"),
            tag("td", bar(s, scale), class_="wide"),
            class_="this" if s is own else None,
        )
        for s in (own, *card["other_scorers"])
    ]
    return tag(
        "section",
        tag("h2", "The same answers under other rules"),
        tag("p", "How much of a gap to someone else's number the reading of answers alone can make.", class_="spoken"),
        tag("table", tag("tbody", tag("tr", tag("th", colspan=4), scale.ends, class_="group"), lines), class_="figures"),
    )  # fmt: skip


def _facts(title: str, items: Iterable[tuple[str, str]]) -> Markup:
    rows = [tag("div", tag("dt", name), tag("dd", value)) for name, value in items]
    return tag("section", tag("h2", title), tag("dl", rows), class_="facts")


def _failures(card: dict[str, Any]) -> Markup | None:
    failures = card["failures"]
    if not failures["count"]:
        return None
    rows = [
        tag("li", tag("b", f["id"]), join(" ", f["kind"], ": ", f["message"]))
        for f in failures["listed"]
    ]
    more = failures["count"] - len(failures["listed"])
    return tag(
        "section",
        tag("h2", "Questions that could not be asked"),
        tag("ol", rows, class_="failures"),
        tag("p", f"and {more:,} more, in the trajectories", class_="note") if more else None,
    )
