"""The tables of two pages say what `docs/results` holds: that of baselines cell by cell, the others as their commands print them."""

from __future__ import annotations

import itertools
import pathlib
import shlex

import pytest

from vo3.clueworld import kept, tables

DOCS = pathlib.Path(__file__).parents[3] / "docs"
KEPT = sorted((DOCS / "results").glob("*.json.gz"))
PAGE = (DOCS / "clueworld.md").read_text()
RL = (DOCS / "rl.md").read_text()
# Columns of the table of baselines that are of the agent, by the file's name.
AGENTS = {"agent": "agent", "before-rl": "agent before RL"}
COMMAND = "    python -m vo3.clueworld.tables "
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
    """The cells under a name in the page's table of baselines, by row; none where the table has no such column."""
    rows = [[c.strip() for c in x[1:-1].split("|")] for x in PAGE.splitlines() if x.startswith("|")]
    start = next(i for i, cells in enumerate(rows) if "`coarse`" in cells[1:])
    if (head := AGENTS.get(name, f"`{name}`")) not in rows[start]:
        return {}
    place = rows[start].index(head)
    here = itertools.takewhile(lambda cells: cells[0] in ROWS, rows[start + 2 :])
    return {cells[0]: cells[place] for cells in here}


def shown() -> dict[str, list[str]]:
    """The tables right below each command on kept files, by the command's arguments."""
    parts = (part.split("\n", 1) for page in (PAGE, RL) for part in page.split(COMMAND)[1:])
    below = {arguments: rest.strip().split("\n\n") for arguments, rest in parts}
    return {
        arguments: list(itertools.takewhile(lambda block: block.startswith("|"), blocks))
        for arguments, blocks in below.items()
        if "docs/results/" in arguments
    }


def test_there_are_some():
    assert {"coarse", "coarse-only"} <= {file.name.removesuffix(".json.gz") for file in KEPT}
    assert all(column(name) for name in ("coarse", "coarse-only", *AGENTS))
    assert sum(bool(blocks) for blocks in shown().values()) >= 3


@pytest.mark.parametrize("file", KEPT, ids=lambda file: file.name)
def test_the_page_says_what_was_measured(file):
    name = file.name.removesuffix(".json.gz")
    said, found = column(name), kept.load(file)
    if not said:
        assert f"docs/results/{name}.json.gz" in " ".join(
            arguments for arguments, blocks in shown().items() if blocks
        )
        return
    for row, figure in ROWS.items():
        if figure not in found:  # An agent's think texts are counted otherwise.
            assert not said[row]
            continue
        number, _, total = tables.cell([found[figure]]).partition(" of ")
        told, _, counted = said[row].partition(" of ")
        assert told == number
        if counted:
            assert counted.replace(",", "") == total


@pytest.mark.parametrize("arguments", [a for a, blocks in shown().items() if blocks])
def test_the_page_shows_what_the_command_prints(arguments, monkeypatch, capsys):
    monkeypatch.chdir(DOCS.parent)
    tables.main(shlex.split(arguments))
    blocks = shown()[arguments]
    assert capsys.readouterr().out.strip().split("\n\n")[: len(blocks)] == blocks
