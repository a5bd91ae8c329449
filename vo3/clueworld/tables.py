"""Evaluations side by side, as a Markdown table, and what the first has over each of the others.

    python -m vo3.clueworld.tables agent=out/clueworld-eval/agent middle=out/clueworld-eval/middle [--only="right$"]
    python -m vo3.clueworld.tables agent=out/asked/0/agent,out/asked/1/agent,out/asked/2/agent
    python -m vo3.clueworld.tables coarse=docs/results/coarse.json.gz coarse-only=docs/results/coarse-only.json.gz

A column is a name and a folder of `vo3.clueworld.evaluate`, or several folders: models that differ in their seed alone. The file of `vo3.clueworld.kept` stands for its folder, wherever it was put. A figure of one folder has the Wilson interval of its questions. Of several it is the mean over them, with the
bootstrap's interval over worlds and models at once (`vo3.clueworld.resample`); what is counted a call is not the same in all of them, and has the lowest and the highest.

The second table is of differences in points, on questions that both have: a column of as many folders as the first is paired with it one by one, a column of one folder with each.
"""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Sequence

import numpy as np
from etils import epath
from jaxtyping import Float

from vo3.clueworld import kept, one_turn
from vo3.clueworld.figures import Measure, Share, measures
from vo3.clueworld.gains import read
from vo3.clueworld.resample import interval, world_of
from vo3.clueworld.scales import COARSE_ONLY, RESOLUTIONS

Run = dict[str, Measure]  # by name of the figure
# Figures of what a run did, calls or wrong answers: another run has done something else, and no difference of theirs is one of the questions.
DONE = ("calls:", "wrong,")


def run_of(folder: epath.PathLike) -> Run:
    """The measures of an evaluation, by its folder or from the file that was kept of it; of a baseline also those of what its think texts say.

    Raises:
      FileNotFoundError: the folder has no answers, or there is no such file.
      ValueError: an answer, or the file, cannot be read.
    """
    if str(folder).endswith(".gz"):
        return kept.load(folder)
    rows = list(read(folder).values())
    found = measures(rows)
    if epath.Path(folder).name in (*RESOLUTIONS, COARSE_ONLY):
        found |= one_turn.said(rows)
    return found


def together(some: Sequence[Measure]) -> tuple[Float[np.ndarray, "runs questions"], list[str]]:
    """The values of what all have, and the worlds that these are about."""
    names = sorted(set(some[0].values).intersection(*(m.values for m in some[1:])))
    values = np.array([[float(m.values[name]) for name in names] for m in some])
    return values, [world_of(name) for name in names]


def cell(some: Sequence[Measure]) -> str:
    """A figure of one run, or of several; "-" of nothing."""
    if len(some) == 1 and not some[0].values:
        return "-"
    if len(some) == 1:
        figure = some[0].figure
        return str(figure).strip() if isinstance(figure, Share) else f"{figure:.3f}"
    counted = [float(np.mean(list(m.values.values()))) for m in some if m.values]
    if not counted:
        return "-"
    form = (lambda x: f"{100 * x:.1f} %") if some[0].share else (lambda x: f"{x:.3f}")
    if any(m.values.keys() != some[0].values.keys() for m in some):
        return f"{form(np.mean(counted))} ({form(min(counted))} to {form(max(counted))})"
    values, worlds = together(some)
    low, high = interval(values, worlds)
    if some[0].share:
        span = f"[{100 * max(low, 0):.1f}, {100 * min(high, 1):.1f}]"
        return f"{form(values.mean())} {span} of {len(some)} x {len(worlds)}"
    return f"{form(values.mean())} [{low:.3f}, {high:.3f}]"


def over(first: Sequence[Measure], other: Sequence[Measure]) -> str:
    """The difference of the first from another, with its interval; "-" where they have nothing in common."""
    values, worlds = together([*first, *other])
    if not worlds:
        return "-"
    gains = values[: len(first)] - values[len(first) :]
    scale, digits = (100, 1) if first[0].share else (1, 3)
    middle, low, high = (scale * x for x in (gains.mean(), *interval(gains, worlds)))
    return f"{middle:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def table(columns: dict[str, list[Run]], *, only: str = "") -> str:
    """Both tables.

    Args:
      columns: runs by name.
      only: pattern that names of figures must match somewhere.

    Raises:
      ValueError: a column can be paired with the first neither one by one nor as a whole; runs of a column have not the same figures; no figure matches.
    """
    names = list(dict.fromkeys(n for runs in columns.values() for run in runs for n in run))
    names = [name for name in names if re.search(only, name)]
    if not names:
        raise ValueError(f"no figure matches {only!r}")
    head, *rest = columns
    for name in rest:
        if len(columns[name]) not in (1, len(columns[head])):
            raise ValueError(
                f"{name} has {len(columns[name])} runs and {head} {len(columns[head])}; give one, or as many"
            )
    for name, column in itertools.product(names, columns):
        missing = [str(i) for i, run in enumerate(columns[column], 1) if name not in run]
        if 0 < len(missing) < len(columns[column]):
            raise ValueError(
                f"{column} has {name!r} in some of its runs and not in run {', '.join(missing)}; give runs of one kind"
            )
    of = lambda column, name: [run[name] for run in columns[column] if name in run]
    rows = [[n, *(cell(some) if (some := of(c, n)) else "-" for c in columns)] for n in names]
    lines = _markdown(["", *columns], rows)
    shared = [n for n in names if all(of(c, n) for c in columns) and not any(d in n for d in DONE)]
    if rest and shared:
        rows = [[n, *(over(of(head, n), of(c, n)) for c in rest)] for n in shared]
        lines += ["", *_markdown(["", *(f"{head} over {c}" for c in rest)], rows)]
    return "\n".join(lines)


def _markdown(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def main(argv: list[str] | None = None) -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("columns", nargs="+", metavar="NAME=DIR[,DIR...]")
    parser.add_argument("--only", default="", metavar="REGEX", help="figures whose names match")
    args = parser.parse_args(argv)
    columns: dict[str, list[Run]] = {}
    for column in args.columns:
        name, sign, folders = column.partition("=")
        if not (name and sign and folders) or name in columns:
            parser.error(f"{column!r}: wanted NAME=DIR[,DIR...], each name once")
        try:
            columns[name] = [run_of(folder) for folder in folders.split(",")]
        except (FileNotFoundError, ValueError) as error:
            raise SystemExit(f"tables: {error}") from error
    try:
        print(table(columns, only=args.only))
    except (ValueError, re.error) as error:
        raise SystemExit(f"tables: {error}") from error


if __name__ == "__main__":
    main()
