"""Curves of RL runs, drawn from their logs alone.

    python -m vo3.train.rl_curves --out=docs/clueworld-rl.svg out/clueworld-rl/0/log.jsonl [MORE/log.jsonl ...] [--keep=figures.jsonl]

`--keep` writes what the panels show of all runs to one file, which this command draws as well as the logs.

Four panels: reward, right answers, calls per question, overlap of calls and clues. A thin line is the running mean of a run over `WINDOW` steps, the thick one the mean of them, as far as all
runs go. Axes reach from the lowest of these values to the highest, not from 0.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence

import numpy as np
from etils import epath

from vo3.viewer.markup import Markup, tag

WINDOW = 10  # steps of the running mean
WIDTH, HEIGHT = 430, 220  # of a panel
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 30, 28


@dataclasses.dataclass(frozen=True)
class Panel:
    """What a panel shows.

    Attributes:
      title: above it.
      lines: (figure of the log, its name in the legend, colour).
    """

    title: str
    lines: tuple[tuple[str, str, str], ...]


PANELS = (
    Panel("reward", (("reward", "reward", "#3b7dd8"),)),
    Panel(
        "right answers",
        (
            ("accuracy", "all", "#3b7dd8"),
            ("accuracy/clue_single_w_tool", "single clue, tool", "#2f9e63"),
            ("accuracy/clue_multi_w_tool", "multi clue, tool", "#c2374a"),
        ),
    ),
    Panel(
        "calls per question",
        (
            ("calls", "all", "#3b7dd8"),
            ("calls/clue_single_w_tool", "single clue, tool", "#2f9e63"),
            ("calls/clue_multi_w_tool", "multi clue, tool", "#c2374a"),
        ),
    ),
    Panel("overlap of a rollout's calls with the clues", (("iou", "IoU", "#3b7dd8"),)),
)

Series = dict[int, float]  # step -> figure
RUN = "run"  # of a row that `keep` wrote: which run it is of


def read(log: str, name: str = "the log") -> list[list[dict]]:
    """The rows of each run of a `log.jsonl`, which is one, or of a file of `keep`.

    Raises:
      ValueError: a line that is no row of an RL run, or no line at all.
    """
    runs: dict[int, list[dict]] = {}
    for number, line in enumerate(log.splitlines(), 1):
        row = json.loads(line)
        if "step" not in row or "reward" not in row:
            raise ValueError(
                f"line {number} of {name} has no step or reward; give the log.jsonl of a run of vo3.train.grpo"
            )
        runs.setdefault(row.get(RUN, 0), []).append(row)
    if not runs:
        raise ValueError(f"{name} is empty; the run has not finished a step")
    return list(runs.values())


def keep(logs: Sequence[Sequence[dict]]) -> str:
    """What the panels show of these runs, one line a step, to four digits."""
    shown = [figure for panel in PANELS for figure, _, _ in panel.lines]
    lines = []
    for run, rows in enumerate(logs):
        for row in rows:
            figures = {name: float(f"{row[name]:.4g}") for name in shown if name in row}
            lines.append(json.dumps({RUN: run, "step": row["step"], **figures}))
    return "\n".join(lines) + "\n"


def series(rows: Sequence[dict], figure: str) -> Series:
    """A figure by step, where the log has it."""
    return {row["step"]: float(row[figure]) for row in rows if figure in row}


def smooth(values: Series) -> Series:
    """Means over the last `WINDOW` steps that are there."""
    steps = sorted(values)
    return {
        step: float(np.mean([values[s] for s in steps[max(0, i + 1 - WINDOW) : i + 1]]))
        for i, step in enumerate(steps)
    }


def mean(runs: Sequence[Series]) -> Series:
    """Mean over runs at the steps that all of them have."""
    shared = set.intersection(*(set(run) for run in runs)) if runs else set()
    return {step: float(np.mean([run[step] for run in runs])) for step in sorted(shared)}


def curves(logs: Sequence[Sequence[dict]]) -> Markup:
    """The panels of these runs, as SVG."""
    end = max(row["step"] for rows in logs for row in rows)
    parts = []
    for number, panel in enumerate(PANELS):
        right, down = WIDTH * (number % 2), HEIGHT * (number // 2)
        parts.append(tag("g", _panel(panel, logs, end), transform=f"translate({right} {down})"))
    height = HEIGHT * -(-len(PANELS) // 2)
    return tag(
        "svg", parts, xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {2 * WIDTH} {height}", role="img",
        aria_label="reward, right answers, calls and overlap over the steps of RL",
    )  # fmt: skip


def _panel(panel: Panel, logs: Sequence[Sequence[dict]], end: int) -> list[Markup]:
    runs = {
        figure: [smooth(run) for rows in logs if (run := series(rows, figure))]
        for figure, _, _ in panel.lines
    }
    values = [v for some in runs.values() for run in some for v in run.values()] or [0.0, 1.0]
    low, high = min(values), max(values)
    if high == low:
        low, high = low - 0.5, high + 0.5
    x = lambda step: LEFT + (WIDTH - LEFT - RIGHT) * step / max(end, 1)
    y = lambda value: TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)
    text = lambda words, at, height, **more: tag(
        "text", words, x=f"{at:.1f}", y=f"{height:.1f}", fill="#888", font_size="11",
        font_family="sans-serif", **more,
    )  # fmt: skip
    line = lambda d, color, width, **more: tag(
        "path", d=d, stroke=color, stroke_width=width, fill="none", **more
    )
    parts = [text(panel.title, LEFT, 14, font_weight="bold")]
    for share in (0.0, 0.5, 1.0):
        value = low + share * (high - low)
        parts.append(line(f"M{LEFT} {y(value):.1f}H{WIDTH - RIGHT}", "#8884", "1"))
        parts.append(text(f"{value:.3g}", LEFT - 6, y(value) + 4, text_anchor="end"))
    at = LEFT
    for figure, name, color in panel.lines:
        path = lambda run: "M" + "L".join(f"{x(s):.1f} {y(run[s]):.1f}" for s in sorted(run))
        parts += [line(path(run), color, "0.8", opacity="0.5") for run in runs[figure]]
        if middle := mean(runs[figure]):
            parts.append(line(path(middle), color, "2"))
        if len(panel.lines) > 1:
            parts.append(line(f"M{at} {HEIGHT - 10}h14", color, "2.5"))
            parts.append(text(name, at + 18, HEIGHT - 6))
            at += 30 + 6 * len(name)
    parts.append(text(f"{end} steps", WIDTH - RIGHT, HEIGHT - 6, text_anchor="end"))
    return parts


def main(argv: list[str] | None = None) -> None:
    """Draws."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", required=True, help="the SVG file")
    parser.add_argument("logs", nargs="+", help="log.jsonl of runs that differ in the seed")
    parser.add_argument("--keep", metavar="FILE", help="write the figures that are drawn, too")
    args = parser.parse_args(argv)
    try:
        logs = [run for log in args.logs for run in read(epath.Path(log).read_text(), log)]
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f"rl_curves: {error}") from error
    out = epath.Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(f"{curves(logs)}\n")
    if args.keep:
        kept = epath.Path(args.keep)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(keep(logs))
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
