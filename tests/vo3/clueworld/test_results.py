"""The page's table of baselines says what `docs/results` holds, cell by cell."""

from __future__ import annotations

import itertools
import pathlib

import pytest

from vo3.clueworld import kept, tables

DOCS = pathlib.Path(__file__).parents[3] / "docs"
KEPT = sorted((DOCS / "results").glob("*.json.gz"))
# A row of the page's table, and the figure that it gives.
ROWS = {
    "clue_single_w_tool": "clue_single_w_tool: right",
    "clue_multi_w_tool": "clue_multi_w_tool: right",
    "clue_single_wo_tool": "clue_single_wo_tool: right",
    "clue_multi_wo_tool": "clue_multi_wo_tool: right",
    "with tool, 2 to 10 minutes": "with tool, video of 2 to 10 minutes: right",
    "with tool, 10 to 30 minutes": "with tool, video of 10 to 30 minutes: right",
    "with tool, 30 to 60 minutes": "with tool, video of 30 to 60 minutes: right",
    "temporal_grounding, IoU >= 0.3": "temporal_grounding: IoU >= 0.3",
    "think: lists exactly the cards shown": "think: lists exactly the cards that frames show",
    "think: digit of a card that is shown": "think: digit of a card that frames show",
    "think: digit of a card that is not": "think: digit of a card that no frame shows",
}


def column(name: str) -> dict[str, str]:
    """The cells under a name in the page's table of baselines, by row."""
    lines = (DOCS / "clueworld.md").read_text().splitlines()
    rows = [[c.strip() for c in line[1:-1].split("|")] for line in lines if line.startswith("|")]
    start = next(i for i, cells in enumerate(rows) if f"`{name}`" in cells[1:])
    place = rows[start].index(f"`{name}`")
    here = itertools.takewhile(lambda cells: cells[0] in ROWS, rows[start + 2 :])
    return {cells[0]: cells[place] for cells in here}


def test_there_are_some():
    assert {"coarse", "coarse-only"} <= {file.name.removesuffix(".json.gz") for file in KEPT}


@pytest.mark.parametrize("file", KEPT, ids=lambda file: file.name)
def test_the_page_says_what_was_measured(file):
    said, found = column(file.name.removesuffix(".json.gz")), kept.load(file)
    assert said.keys() == ROWS.keys()
    for row, name in ROWS.items():
        number, _, total = tables.cell([found[name]]).partition(" of ")
        told, _, counted = said[row].partition(" of ")
        assert told == number
        if counted:
            assert counted.replace(",", "") == total
