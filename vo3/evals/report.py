"""All cards of a workdir in one table, modes side by side, and the plots of accuracy against cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from etils import epath

from vo3.evals import card_page, card_text, cards, plot, published
from vo3.evals.journal import write_atomically
from vo3.viewer.markup import Markup, tag
from vo3.viewer.page import document

MARKDOWN, HTML = "summary.md", "index.html"


def load_all(workdir: epath.PathLike) -> tuple[list[dict[str, Any]], list[str]]:
    """Every card under a workdir, by benchmark, mode and quota, and a sentence for each that cannot be read."""
    found, problems = [], []
    for file in sorted(epath.Path(workdir).glob(f"*/*/{cards.JSON}")):
        try:
            found.append(cards.load(file))
        except cards.CardError as error:
            problems.append(f"{error}; it is left out of the table")
    order = {name: i for i, name in enumerate(("tools", "think", "direct"))}
    key = lambda c: (c["benchmark"]["name"], c["quota"], order[c["mode"]])
    return sorted(found, key=key), problems


def table(found: Sequence[dict[str, Any]]) -> str:
    """The cards as a Markdown table; the published figure stands beside each."""
    lines = [
        "| benchmark | mode | metric | % | 95 % | published | visual tokens | s / question | questions | failed |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for card in found:
        score, shown, measured = card["score"], card["shown"], card["measured"]
        models = card["published"]["models"] if card["published"] else {}
        theirs = models.get(published.OURS)
        tokens, seconds = shown["visual_tokens"], measured["seconds_per_question"]
        lines.append(
            f"| {card['benchmark']['title']}{' (part)' if card['benchmark']['partial'] else ''} "
            f"| {card['mode']}{'-' + str(card['quota']) if card['quota'] else ''} | {score['metric']} "
            f"| {card_text.percent(score)} | {card_text.interval(score)} "
            f"| {'-' if theirs is None else f'{theirs:.1f}'} "
            f"| {'-' if tokens is None else f'{tokens:,.0f}'} | {'-' if seconds is None else f'{seconds:.2f}'} "
            f"| {card['benchmark']['questions']:,} | {card['failures']['count']} |"
        )
    return "\n".join(lines)


def _comparable(found: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Benchmark -> the card that stands beside its published figures: the agent's where there is one, at the largest quota."""
    order = lambda card: (card["mode"] == "tools", card["quota"])
    chosen = sorted((card for card in found if card["published"]), key=order)
    chosen = {card["benchmark"]["name"]: card for card in chosen}
    return dict(sorted(chosen.items()))


def published_table(found: Sequence[dict[str, Any]]) -> str:
    """The published rows on the benchmarks of the cards as a Markdown table, this run's row last; empty where there are none."""
    ours = _comparable(found)
    if not ours:
        return ""
    cell = lambda value: "-" if value is None else f"{value:.1f}"
    titles = [card["benchmark"]["title"] for card in ours.values()]
    lines = [f"| published, 7B | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    for model, values in published.rows(ours):
        lines.append(f"| {model} | {' | '.join(map(cell, values))} |")
    own = [cell(card["score"]["value"]) + _part(card) for card in ours.values()]
    lines.append(f"| **this** | {' | '.join(own)} |")
    return "\n".join(lines)


def _part(card: dict[str, Any]) -> str:
    return " (part)" if card["benchmark"]["partial"] else ""


def write(workdir: epath.PathLike) -> list[str]:
    """Writes summary.md and index.html over the cards that are there; nothing where there is none. Returns a sentence for each card that cannot be read."""
    workdir = epath.Path(workdir)
    found, problems = load_all(workdir)
    if found:
        tables = [table(found), published_table(found)]
        write_atomically(workdir / MARKDOWN, "\n\n".join(filter(None, tables)) + "\n")
        write_atomically(workdir / HTML, page(found))
    return problems


def page(found: Sequence[dict[str, Any]]) -> str:
    """The cards as one page: for each benchmark its modes in a table and, from two costs on, the plots."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for card in found:
        by_name.setdefault(card["benchmark"]["name"], []).append(card)
    names = sorted({card["settings"]["checkpoint"]["name"] for card in found})
    questions = sum(card["benchmark"]["questions"] for card in found)
    header = tag(
        "header",
        tag("p", *(tag("span", name) for name in names), class_="eyebrow"),
        tag("h1", "Evaluation"),
        tag(
            "p",
            f"{card_text.many(len(by_name), 'benchmark')}, {card_text.many(questions, 'answer')}. Bars and whiskers are 95\u00a0% intervals.",
            class_="verdict",
        ),
    )
    sections = [*(_section(cards_) for cards_ in by_name.values()), _published(found)]
    main = tag("main", tag("style", Markup(card_page.css())), header, sections, class_="card")
    return document("Evaluation", main, script=False)


def _published(found: Sequence[dict[str, Any]]) -> Markup | None:
    """The published rows on the benchmarks of the cards, this run's last."""
    ours = _comparable(found)
    if not ours:
        return None
    cell = lambda value: tag("td", "\u2013" if value is None else f"{value:.1f}")
    head = ["", *(card["benchmark"]["title"] for card in ours.values())]
    lines = [tag("tr", [tag("th", title, scope="col") for title in head], class_="group")]
    for model, values in published.rows(ours):
        lines.append(tag("tr", tag("th", model, scope="row"), map(cell, values)))
    own = [tag("td", card_text.percent(card["score"]) + _part(card)) for card in ours.values()]
    lines.append(tag("tr", tag("th", "this result", scope="row"), own, class_="this"))
    source = next(iter(ours.values()))["published"]["source"]
    return tag(
        "section",
        tag("h2", "Published figures"),
        tag("p", f"7B models; {source}.", class_="spoken"),
        tag("table", tag("tbody", lines), class_="figures"),
    )


def _section(found: Sequence[dict[str, Any]]) -> Markup:
    bench = found[0]["benchmark"]
    row = found[0]["published"]
    theirs = row["models"].get(published.OURS) if row else None
    line = [] if theirs is None else [{"value": theirs, "low": theirs, "high": theirs}]
    scale = card_page.Scale.over([*(card["score"] for card in found), *line])
    head = ("", found[0]["score"]["metric"], "95 %", "visual tokens", "s a question")
    lines = [tag("tr", [tag("th", name, scope="col") for name in head], scale.ends, class_="group")]
    for card in found:
        key = f"{card['mode']}-{card['quota']}" if card["quota"] else card["mode"]
        tokens, seconds = card["shown"]["visual_tokens"], card["measured"]["seconds_per_question"]
        link = tag("a", _title(card), href=f"{bench['name']}/{key}/{cards.HTML}")
        lines.append(
            tag(
                "tr",
                tag("th", link, scope="row"),
                tag("td", card_text.percent(card["score"])),
                tag("td", card_text.interval(card["score"])),
                tag("td", "\u2013" if tokens is None else f"{tokens:,.0f}"),
                tag("td", "\u2013" if seconds is None else f"{seconds:.2f}"),
                tag("td", card_page.bar(card["score"], scale), class_="wide"),
                class_=f"mode c{plot.COLORS[card['mode']]}",
            )
        )
    for figure in line:
        lines.append(
            tag(
                "tr",
                tag("th", f"{published.OURS}, published", scope="row"),
                tag("td", card_text.percent(figure)),
                *(tag("td") for _ in range(3)),
                tag("td", card_page.bar(figure, scale), class_="wide"),
                class_="compared",
            )
        )
    note = (
        "A part of the benchmark; not comparable with published figures."
        if bench["partial"]
        else None
    )
    return tag(
        "section",
        tag("h2", bench["title"]),
        tag("p", note, class_="spoken") if note else None,
        tag("table", tag("tbody", lines), class_="figures overview"),
        _plots(found),
    )


def _title(card: dict[str, Any]) -> str:
    return f"{card['mode']} at {card['quota']:,}" if card["quota"] else card["mode"]


def _plots(found: Sequence[dict[str, Any]]) -> Markup | None:
    """Accuracy against visual tokens and against seconds, where there is more than one result to join or compare."""
    drawn = []
    for label, unit, cost in (
        ("visual tokens a question", "", lambda c: c["shown"]["visual_tokens"]),
        ("seconds a question", " s", lambda c: c["measured"]["seconds_per_question"]),
    ):
        series: dict[str, list[plot.Point]] = {}
        for card in found:
            score, spent = card["score"], cost(card)
            if spent and score["value"] is not None:
                point = plot.Point(spent, score["value"], score["low"], score["high"])
                series.setdefault(card["mode"], []).append(point)
        if sum(map(len, series.values())) > 1:
            title = f"{found[0]['score']['metric']} against {label}"
            drawn.append(
                tag(
                    "figure",
                    tag("h3", title),
                    plot.draw(series, label=label, unit=unit),
                    class_="plot",
                )
            )
    return tag("div", drawn, class_="plots") if drawn else None
