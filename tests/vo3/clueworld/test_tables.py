"""Evaluations side by side, by hand and by command."""

import gzip
import re

import numpy as np
import pytest

from vo3.clueworld import kept, tables, tasks
from vo3.clueworld.evaluate import questions
from vo3.clueworld.figures import Measure, Share
from vo3.clueworld.scales import get_scale
from vo3.clueworld.views import crop_policy, observe
from vo3.clueworld.world import make_world
from vo3.evals.journal import FILE, Journal
from vo3.trajectory import Call, Trajectory, Turn

WORLDS = (50_000, 50_001)


def run(**values):
    return {name: Measure({f"{i}-x": v for i, v in enumerate(row)}) for name, row in values.items()}


def test_one_run_has_the_interval_of_its_questions():
    half = Measure({f"{i}-x": i % 2 for i in range(10)})
    assert tables.cell([half]) == str(Share(5, 10)).strip()
    assert tables.cell([Measure({"1-x": 0.25, "2-x": 0.5}, share=False)]) == "0.375"


def test_several_runs_have_the_interval_of_worlds_and_runs():
    rng = np.random.default_rng(0)
    runs = [Measure({f"{i}-x": float(rng.random() < 0.8) for i in range(200)}) for _ in range(3)]
    text = tables.cell(runs)
    mean = np.mean([list(m.values.values()) for m in runs])
    assert text.startswith(f"{100 * mean:.1f} % [") and text.endswith("of 3 x 200")
    # Calls are not the same in all runs: no interval of theirs.
    runs[1].values["0-x#7"] = 1.0
    assert "of 3" not in tables.cell(runs) and " to " in tables.cell(runs)
    ragged = [Measure({"1-x#0": 1, "1-x#1": 0}), Measure({"1-x#0": 1})]
    assert tables.cell(ragged) == "75.0 % (50.0 % to 100.0 %)"


def test_differences_are_of_what_both_have_and_in_points():
    first, other = Measure({"1-x": 1, "2-x": 1, "3-x": 1}), Measure({"1-x": 0, "2-x": 0, "4-x": 1})
    assert tables.over([first], [other]) == "+100.0 [+100.0, +100.0]"
    assert tables.over([first], [Measure({"4-x": 1})]) == "-"
    # Paired run by run what runs have in common falls out; held against one run it does not.
    odd = [Measure({f"{i}-x": float(i % 2 == j) for i in range(40)}) for j in range(2)]
    assert tables.over(odd, odd) == "+0.0 [+0.0, +0.0]"
    assert tables.over(odd, odd[:1]).startswith("+0.0 [-")


def test_of_what_a_run_did_there_is_no_difference():
    one, other = ({n: Measure({"1-x": v}) for n in ("a: right", "a: wrong, so")} for v in (0, 1))
    rows, differences = tables.table({"first": [one], "other": [other]}).split("\n\n")
    assert "a: wrong, so" in rows and "a: wrong, so" not in differences
    assert "a: right" in differences


def test_columns_that_cannot_be_paired_and_patterns_without_a_figure_are_refused():
    one = run(right=[1, 0])
    with pytest.raises(ValueError, match=r"b has 2 runs and a 3; give one, or as many"):
        tables.table({"a": [one] * 3, "b": [one] * 2})
    with pytest.raises(ValueError, match="no figure matches 'wrong'"):
        tables.table({"a": [one]}, only="wrong")


def test_runs_of_a_column_have_the_same_figures():
    some, more = run(right=[1, 1]), run(right=[0, 1], said=[1, 1])
    with pytest.raises(ValueError, match=r"b has 'said' in some of its runs and not in run 1"):
        tables.table({"a": [some, some], "b": [some, more]})
    assert tables.cell([Measure({}, share=False)]) == tables.cell([Measure({})]) == "-"


def test_a_figure_that_a_column_lacks_is_left_open():
    text = tables.table({"a": [run(right=[1, 1])], "b": [run(right=[0, 1], said=[1, 1])]})
    head, rule, _, said, gap, *second = text.splitlines()
    assert (head, rule) == ("|  | a | b |", "| --- | --- | --- |")
    assert said.startswith("| said | - | 100.0 %") and gap == ""
    assert [line.split(" | ")[0] for line in second] == ["| ", "| ---", "| right"]


def test_what_is_kept_is_what_was_measured(tmp_path):
    found = {
        "right": Measure({"1-x": True, "2-x": False, "2-y": 1.0}),
        "calls: IoU": Measure({"1-x#0": 0.05, "1-x#1": 1 / 3}, share=False),
        "nothing": Measure({}),
    }
    for name in ("a.gz", "b.gz"):
        kept.save(tmp_path / name, found)
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()
    read = kept.load(tmp_path / "a.gz")
    assert list(read) == list(found) and read["right"] == found["right"]
    assert read["nothing"] == found["nothing"] and not read["calls: IoU"].share
    assert read["calls: IoU"].values == {"1-x#0": 0.05, "1-x#1": 0.3333}
    spoiled = bytearray((tmp_path / "a.gz").read_bytes())
    spoiled[10] = 0xFF  # no block of deflate begins so
    for text in (
        b"",
        b"{}",
        bytes(spoiled),
        gzip.compress(b"[1]"),
        gzip.compress(b'{"right": {"share": true}}'),
    ):
        (tmp_path / "c.gz").write_bytes(text)
        with pytest.raises(ValueError, match=r"c\.gz does not hold the measures of an evaluation"):
            kept.load(tmp_path / "c.gz")


def written(folder, policy, *, answer, call):
    """An evaluation of two worlds in which everything is answered with `answer(task)`."""
    with Journal(folder / FILE) as log:
        for seed in WORLDS:
            shown = observe(make_world(seed), 0, policy=policy)
            for task in questions(make_world(seed), "w.mp4"):
                clues = task.target.clues if call else ()
                turns = [Turn("question", "<video>", observations=(shown,))]
                turns += [Turn("call", "-", call=Call(c.start, c.end, "fine")) for c in clues]
                text = f"<think>cards red.</think>\n<answer>{answer(task)}</answer>"
                turns.append(Turn("answer", text, answer=answer(task)))
                log.append(Trajectory(task, tuple(turns), "answered", answer(task)))
    return folder


def test_the_command(tmp_path, capsys):
    agent = [
        written(tmp_path / f"{i}/agent", crop_policy(), answer=lambda t: t.target.answer, call=True)
        for i in range(2)
    ]
    view = get_scale("clueworld").view("fine")
    fine = written(tmp_path / "fine", view, answer=lambda t: "nothing", call=False)
    tables.main([f"agent={agent[0]},{agent[1]}", f"fine={fine}", "--only", "right$|calls:|think"])
    first, second = capsys.readouterr().out.split("\n\n")
    cells = {row.split(" | ")[0].strip("| "): row.split(" | ")[1:] for row in first.splitlines()}
    assert cells[f"{tasks.SINGLE_TOOL}: right"][0] == "100.0 % [100.0, 100.0] of 2 x 6"
    assert cells[f"{tasks.SINGLE_TOOL}: right"][1].startswith("0.0 % [0.0, 39.0] of 6")
    # What think texts say is told of baselines alone, and calls of agents.
    assert cells["think: lists exactly the cards that frames show"][0] == "-"
    assert cells["calls: window hits a clue (IoU > 0)"][1] == "- |"
    assert f"| {tasks.MULTI_TOOL}: right | +100.0 [+100.0, +100.0] |" in second.splitlines()
    # What was kept of an evaluation stands for it.
    held = [kept.save(file := tmp_path / f"{i}.gz", tables.run_of(f)) or file for i, f in enumerate((*agent, fine))]  # fmt: skip
    tables.main([f"agent={held[0]},{held[1]}", f"fine={held[2]}", "--only", "right$|calls:|think"])
    assert capsys.readouterr().out.split("\n\n") == [first, second]
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn.gz").write_bytes(held[0].read_bytes()[:-9])
    (tmp_path / "torn" / FILE).write_text("{}\n")
    for wrong, told in (
        ([f"a={tmp_path / 'torn'}"], "tables: .*line 1, is no trajectory"),
        ([f"a={tmp_path / 'torn.gz'}"], "tables: .*torn.gz does not hold the measures"),
        ([f"a={tmp_path / 'none.gz'}"], "tables: .*none.gz does not exist; make it"),
        (["agent"], r"'agent': wanted NAME=DIR"),
        ([f"a={fine}", f"a={fine}"], "each name once"),
        ([f"a={fine}", "--only", "("], "tables: .*unterminated|tables: missing"),
        ([f"a={tmp_path / 'none'}"], "tables: .*none/trajectories.jsonl does not exist"),
    ):
        with pytest.raises(SystemExit) as refused:
            tables.main(wrong)
        text = str(refused.value) + capsys.readouterr().err
        assert re.search(told, text), text
