"""A result card in words: its figures, what must be known about them, and the whole as Markdown."""

from __future__ import annotations

from typing import Any

from vo3.chat.dialects import DEFAULT
from vo3.evals.journal import flat

HOW = {
    "tools": "the agent: it looks again before it answers",
    "direct": "one look, the answer alone",
    "think": "one look, reasoning before the answer",
}


def percent(figure: dict[str, Any]) -> str:
    """`72.1`, or a dash where nothing was counted."""
    return "\u2013" if figure["value"] is None else f"{figure['value']:.1f}"


def interval(figure: dict[str, Any]) -> str:
    """`[70.2, 74.0]`."""
    return f"[{figure['low']:.1f}, {figure['high']:.1f}]"


def count(figure: dict[str, Any]) -> str:
    """`1,568 of 2,175`, or the total alone for a mean."""
    if figure.get("right") is None:
        return f"{figure['total']:,}"
    return f"{figure['right']:,} of {figure['total']:,}"


def many(number: int, thing: str) -> str:
    """`1 question`, `2,175 questions`."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def warnings(card: dict[str, Any]) -> list[str]:
    """What must be known before the number is compared with another."""
    bench, told = card["benchmark"], []
    if bench["partial"]:
        whole = (
            f" of {bench['published_questions']:,} published"
            if bench["published_questions"]
            else ""
        )
        told.append(
            f"A part of the benchmark: {many(bench['questions'], 'question')} asked{whole}; not comparable with published figures."
        )
    changed = [f["name"] for f in bench["files"] if f["published"] is False]
    if changed:
        told.append(f"Annotation files that differ from the published ones: {', '.join(changed)}.")
    if card["settings"].get("sampling", {}).get("subtitles"):
        told.append("Asked with the subtitles of the whole video; published figures are without.")
    if n := card["failures"]["count"]:
        told.append(f"{many(n, 'question')} could not be asked: counted as wrong, listed below.")
    if n := card["unread"]:
        told.append(f"{many(n, 'answer')} could not be read by the scorer: counted as wrong.")
    if n := card["unjudged"]:
        told.append(
            f"{many(n, 'answer')} only a judge can score, and none was set or it did not say: left out."
        )
    if faulty := bench["faulty"]:
        told.append(
            f"{many(len(faulty), 'question')} cannot be answered rightly as published: {faulty[0]['note']}."
        )
    return told + bench["notes"]


def dialect(card: dict[str, Any]) -> str:
    """How the model called its tool; cards made before there was a choice name none."""
    return card["settings"].get("rollout", {}).get("dialect", DEFAULT)


def facts(card: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Everything that made the number, by heading."""
    shown, settings, env = card["shown"], card["settings"], card["environment"]
    judge = card["scorer"].get("judge")
    files = [
        (file["name"], f"sha256 {file['sha256'][:16]}, {_PUBLISHED[file['published']]}")
        for file in card["benchmark"]["files"]
    ]
    return [
        (
            "What it was shown, a question on average",
            [
                ("visual tokens", _n(shown["visual_tokens"])),
                ("overview", f"{_n(shown['overview_frames'])} frames (at most {_n(shown['overview_frames_most'])}), "
                 f"{_n(shown['overview_tokens'])} tokens (at most {_n(shown['overview_tokens_most'])})"),
                ("overview rate", f"{_n(shown['overview_fps'])} frames a second"),
                ("overview sizes", ", ".join(f"{k} ({v})" for k, v in shown["overview_sizes"].items()) or "\u2013"),
                ("clips", f"{_n(shown['clips'])}, each {_n(shown['clip_seconds'])} s in {_n(shown['clip_tokens'])} tokens"),
                ("videos", f"{card['videos']['count']:,}, hash {card['videos']['hash'][:16]}"),
            ],
        ),
        (
            "How it was scored",
            [
                ("scorer", f"{card['scorer']['name']}, version {card['scorer']['version']}"),
                ("judge", judge or "none"),
                ("outcomes", ", ".join(f"{k} {v:,}" for k, v in card["outcomes"].items())),
                ("calls", ", ".join(f"{k}: {v:,}" for k, v in card["calls"].items())),
            ],
        ),
        ("Annotations", [("source", card["benchmark"]["source"]), *files]),
        ("Settings", [(k, _n(v)) for k, v in flat(settings).items() if k != "benchmark" and not k.startswith("annotations.")]),
        ("Environment", [("vo3", card["vo3"]), *((k.removeprefix("packages."), _n(v)) for k, v in flat(env).items() if k != "packages.vo3")]),
        ("Measured", [(k.replace("_", " "), _n(v)) for k, v in card["measured"].items()]),
    ]  # fmt: skip


_PUBLISHED = {True: "as published", False: "not as published", None: "published hash not known"}


def _n(value: Any) -> str:
    if value is None:
        return "\u2013"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def markdown(card: dict[str, Any]) -> str:
    """The card for a terminal, a pull request or a paper's appendix."""
    score = card["score"]
    lines = [
        f"# {card['benchmark']['title']}: {percent(score)} {interval(score)} {score['metric']}",
        "",
        f"{card['settings']['checkpoint']['name']}, mode `{card['mode']}` ({HOW[card['mode']]}), dialect `{dialect(card)}`; "
        f"{count(score)} questions. "
        "Intervals are 95 %.",
        "",
        *(f"> {warning}" for warning in warnings(card)),
        "",
    ]
    if card["published"]:
        lines += [f"## Published ({card['published']['metric']})", "", "| model | % |", "|---|---|"]
        lines += [
            f"| {name} | {value:.1f} |" for name, value in card["published"]["models"].items()
        ]
        lines += [f"| **this** | **{percent(score)}** {interval(score)} |", ""]
    for title, rows in (("By category", card["rows"]), ("Apart", card["apart"])):
        if rows:
            lines += [f"## {title}", "", "| | | % | 95 % | right |", "|---|---|---|---|---|"]
            lines += [
                f"| {r['category']} | {r['group']} | {percent(r)} | {interval(r)} | {count(r)} |"
                for r in rows
            ]
            lines.append("")
    if card["other_scorers"]:
        lines += [
            "## The same answers under other rules",
            "",
            "| rule | % | 95 % | unread |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| {s['name']} | {percent(s)} | {interval(s)} | {s['unread']} |"
            for s in card["other_scorers"]
        ]
        lines.append("")
    for title, items in facts(card):
        lines += [f"## {title}", "", *(f"* {name}: {value}" for name, value in items), ""]
    if card["failures"]["listed"]:
        lines += ["## Questions that could not be asked", ""]
        lines += [f"* {f['id']}: {f['kind']}: {f['message']}" for f in card["failures"]["listed"]]
        lines.append("")
    return "\n".join(lines)
