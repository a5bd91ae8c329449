"""Two cards side by side: which settings differ, which questions flipped, and whether the difference may be chance."""

from __future__ import annotations

import dataclasses
from typing import Any

from vo3.evals import card_page, card_text
from vo3.evals.card_text import many
from vo3.evals.cards import CardError
from vo3.evals.journal import flat
from vo3.evals.statistics import mcnemar
from vo3.viewer.markup import Markup, join, tag
from vo3.viewer.page import document

LISTED = 100  # flipped questions shown in each direction, at most
VIDEOS = 10  # videos of another content named, at most


@dataclasses.dataclass(frozen=True)
class Difference:
    """A setting that is not the same."""

    name: str
    first: Any
    second: Any


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two cards of one benchmark.

    Attributes:
      first, second: the cards.
      differences: what differs of everything that can move the number.
      common: questions in both.
      gained, lost: questions that only the second, or only the first, answered rightly.
      p_value: McNemar's exact two-sided test over the common questions.
    """

    first: dict[str, Any]
    second: dict[str, Any]
    differences: tuple[Difference, ...]
    common: int
    gained: tuple[str, ...]
    lost: tuple[str, ...]
    p_value: float


def compare(first: dict[str, Any], second: dict[str, Any]) -> Comparison:
    """Compares two cards.

    Raises:
      CardError: they are of different benchmarks, or have no question in common.
    """
    names = [card["benchmark"]["name"] for card in (first, second)]
    if names[0] != names[1]:
        raise CardError(
            f"the cards are of different benchmarks, {names[0]} and {names[1]}; compare two of one"
        )
    one, two = first["verdicts"], second["verdicts"]
    common = [name for name in one if name in two]
    if not common:
        raise CardError(f"the two cards of {names[0]} have no question in common")

    # A time window counts as right from an IoU of 0.5 on.
    def right(verdicts: dict[str, Any], name: str) -> bool:
        return verdicts[name][0] >= 0.5

    gained = tuple(n for n in common if right(two, n) and not right(one, n))
    lost = tuple(n for n in common if right(one, n) and not right(two, n))
    a, b = (_movers(card) for card in (first, second))
    differences = tuple(
        Difference(key, a.get(key), b.get(key))
        for key in dict.fromkeys([*a, *b])
        if a.get(key) != b.get(key)
    )
    differences += _videos(first, second)
    return Comparison(
        first, second, differences, len(common), gained, lost, mcnemar(len(lost), len(gained))
    )


def _movers(card: dict[str, Any]) -> dict[str, Any]:
    """Everything of a card that can move its number, by dotted name."""
    bench = card["benchmark"]
    return flat(
        {
            "mode": card["mode"],
            "settings": card["settings"],
            "scorer": card["scorer"],
            "questions": bench["questions"],
            "annotations": {file["name"]: file["sha256"] for file in bench["files"]},
            "videos": {k: v for k, v in card["videos"].items() if k != "hashes"},
            "shown": {k: v for k, v in card["shown"].items() if k.startswith("overview")},
            "failed": card["failures"]["count"],
            "vo3": card["vo3"],
            "environment": card["environment"],
        }
    )


def _videos(first: dict[str, Any], second: dict[str, Any]) -> tuple[Difference, ...]:
    """Videos that both cards have and that are not the same file, the first few by name."""
    one, two = (card["videos"].get("hashes", {}) for card in (first, second))
    other = [name for name in one if name in two and one[name] != two[name]]
    told = [Difference(f"videos.{name}", one[name], two[name]) for name in other[:VIDEOS]]
    if len(other) > VIDEOS:
        told.append(Difference("videos, further ones that differ", len(other) - VIDEOS, None))
    return tuple(told)


def verdict(comparison: Comparison) -> str:
    """What the flips say, in one sentence."""
    gained, lost, p = len(comparison.gained), len(comparison.lost), comparison.p_value
    told = f"Of {many(comparison.common, 'common question')} the second gains {gained:,} and loses {lost:,}"
    chance = "which may well be chance" if p >= 0.05 else "which chance alone hardly does"
    return f"{told}; McNemar's exact test: p = {p:.3g}, {chance}."


def text(comparison: Comparison) -> str:
    """The comparison for a terminal, as Markdown."""
    first, second = comparison.first, comparison.second
    lines = [
        f"# {first['benchmark']['title']}: {card_text.percent(first['score'])} and {card_text.percent(second['score'])} {first['score']['metric']}",
        "",
        verdict(comparison),
        "",
        "## What differs",
        "",
    ]
    if comparison.differences:
        lines += ["| | first | second |", "|---|---|---|"]
        lines += [
            f"| {d.name} | {_cell(d.first)} | {_cell(d.second)} |" for d in comparison.differences
        ]
    else:
        lines.append("Nothing that the cards record.")
    for title, names in (("Gained", comparison.gained), ("Lost", comparison.lost)):
        if names:
            lines += ["", f"## {title}: {len(names):,}", ""]
            lines += [f"* {_flip(comparison, name)}" for name in names[:LISTED]]
            if len(names) > LISTED:
                lines.append(f"* and {len(names) - LISTED:,} more")
    return "\n".join(lines) + "\n"


def _flip(comparison: Comparison, name: str) -> str:
    given = [_said(card["verdicts"][name]) for card in (comparison.first, comparison.second)]
    return f"{name}: {given[0]}, then {given[1]}"


def _said(entry: list[Any]) -> str:
    return "no answer" if entry[1] is None else str(entry[1])


def _cell(value: Any) -> str:
    return "\u2013" if value is None else str(value)


def page(comparison: Comparison) -> str:
    """The comparison as one HTML document."""
    first, second = comparison.first, comparison.second
    scores = [
        tag(
            "tr",
            tag(
                "th",
                f"{which}: {card['settings']['checkpoint']['name']}, {card['mode']}",
                scope="row",
            ),
            tag("td", card_text.percent(card["score"])),
            tag("td", card_text.interval(card["score"])),
            tag("td", card_text.count(card["score"])),
            tag("td", card_page.bar(card["score"]), class_="wide"),
            class_="this" if which == "second" else None,
        )
        for which, card in (("first", first), ("second", second))
    ]
    differing = [
        tag(
            "tr",
            tag("th", d.name, scope="row"),
            tag("td", _cell(d.first)),
            tag("td", _cell(d.second)),
        )
        for d in comparison.differences
    ]
    main = tag(
        "main",
        tag("style", Markup(card_page.css())),
        tag(
            "header",
            tag(
                "p",
                tag("span", "two results"),
                tag("span", first["score"]["metric"]),
                class_="eyebrow",
            ),
            tag("h1", first["benchmark"]["title"]),
            tag("p", verdict(comparison), class_="verdict"),
        ),
        tag("section", tag("table", tag("tbody", scores), class_="figures")),
        tag(
            "section",
            tag("h2", "What differs"),
            tag("table", tag("tbody", differing), class_="figures differing")
            if differing
            else tag("p", "Nothing that the cards record.", class_="note"),
        ),
        _flips("Gained", comparison, comparison.gained),
        _flips("Lost", comparison, comparison.lost),
        class_="card",
    )
    return document(f"{first['benchmark']['title']}: two results", main, script=False)


def _flips(title: str, comparison: Comparison, names: tuple[str, ...]) -> Markup | None:
    if not names:
        return None
    rows = [
        tag(
            "li",
            tag("b", name),
            join(" ", _said(comparison.first["verdicts"][name]), " \u2192 ", _said(comparison.second["verdicts"][name])),
        )
        for name in names[:LISTED]
    ]  # fmt: skip
    more = len(names) - LISTED
    return tag(
        "section",
        tag("h2", f"{title}: {len(names):,}"),
        tag("ol", rows, class_="failures"),
        tag("p", f"and {more:,} more", class_="note") if more > 0 else None,
    )
