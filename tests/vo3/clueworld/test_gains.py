"""Before and after RL, by hand."""

import dataclasses

import pytest

from vo3.clueworld import gains as g
from vo3.trajectory import Call, Clue, Target, Task, Trajectory, Turn

CLUE = Clue(10.0, 20.0)


def said(name, answer, *windows, source="clue_single_w_tool", clues=(CLUE,)):
    turns = [Turn("call", "", call=Call(*w, "fine")) for w in windows]
    text = f"<think>x</think>\n<answer>{answer}</answer>"
    turns.append(Turn("answer", text, answer=answer))
    task = Task(name, "v.mp4", "q", None, Target("A", tuple(clues), source))
    return Trajectory(task, tuple(turns), "answered", answer)


def rows(*some):
    return {t.task.id: t for t in some}


SEEN = {"source": "clue_single_wo_tool", "clues": ()}
BEFORE = rows(
    said("a", "B", (10.0, 20.0), (30.0, 40.0)), said("b", "B"), said("c", "A", (10.0, 20.0)),
    said("d", "A", **SEEN), said("lone", "A"),
)  # fmt: skip
ONE = rows(
    said("a", "A", (10.0, 20.0)), said("b", "A", (15.0, 20.0)), said("c", "A", (10.0, 20.0)),
    said("d", "A", (1.0, 2.0), **SEEN),
)  # fmt: skip
TWO = rows(
    said("a", "B", (10.0, 20.0)), said("b", "A", (10.0, 20.0)), said("c", "A", (10.0, 20.0)), said("d", "A", **SEEN),
)  # fmt: skip


def figures(found):
    return found.before, found.after, found.questions


def test_runs_that_gain_the_same_are_not_certain():
    """Each of three runs gains 1 question of 20 and another loses none: their spread is 0, that of questions is not."""
    before = rows(*(said(f"{i}-x", "B" if i < 2 else "A") for i in range(20)))
    after = [rows(*(said(f"{i}-x", "B" if i == j else "A") for i in range(20))) for j in (0, 0, 0)]
    found = g.change(g.right, before, after)
    assert found.after == (0.95,) * 3
    low, high = found.interval
    assert low == 0 and high >= 0.1


def test_measures_by_hand():
    tool = lambda run: {k: t for k, t in run.items() if t.task.target.clues}
    found = g.change(g.right, tool(BEFORE), [tool(ONE), tool(TWO)])
    assert figures(found) == (1 / 3, (1.0, pytest.approx(2 / 3)), 3)
    low, high = found.interval
    assert low <= 0 < 1 / 2 < high
    assert figures(g.change(g.calls, tool(BEFORE), [tool(ONE)])) == (1.0, (1.0,), 3)
    # IoU before: 10 of 20 s, no call, all.
    assert figures(g.change(g.iou, tool(BEFORE), [tool(ONE)])) == (0.5, (pytest.approx(2.5 / 3),), 3)  # fmt: skip
    assert g.change(g.iou, rows(BEFORE["d"]), [rows(ONE["d"])]) is None
    # Two questions that only the second has right: twice a quarter.
    assert g.p_value(tool(BEFORE), tool(ONE)) == 0.5 and g.p_value(BEFORE, BEFORE) == 1.0


def test_grounding_counts_overlap():
    one = said("g", '{"temporal_segment": [10, 15]}', source="temporal_grounding")
    assert g.right(one) == pytest.approx(0.5) and g.iou(one) is None
    target = dataclasses.replace(one.task.target, data_source="clue_multi_wo_tool")
    other = dataclasses.replace(one, task=dataclasses.replace(one.task, target=target))
    assert g.right(other) == 0.0


def test_the_command(tmp_path, capsys):
    for name, run in (("0", BEFORE), ("1", ONE), ("2", TWO)):
        (tmp_path / name).mkdir()
        lines = "".join(t.dumps() + "\n" for t in run.values())
        (tmp_path / name / "trajectories.jsonl").write_text(lines)
    g.main(["--before", str(tmp_path / "0"), str(tmp_path / "1"), str(tmp_path / "2")])
    shown = capsys.readouterr().out
    assert "| with tool: right | 3 | 33.3 % | 83.3 % (66.7 % to 100.0 %) | +50.0 [" in shown
    assert "| clue_single_wo_tool: calls | 1 | 0.00 | 0.50 (0.00 to 1.00) |" in shown
    assert "0.5, 1 |" in shown and "temporal_grounding" not in shown
    with pytest.raises(SystemExit, match=r"gains: .*does not exist; make it with"):
        g.main(["--before", str(tmp_path), str(tmp_path / "1")])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "trajectories.jsonl").write_text(said("z", "A").dumps() + "\n")
    with pytest.raises(SystemExit, match=r"gains: the evaluations have no question in common"):
        g.main(["--before", str(tmp_path / "0"), str(tmp_path / "other")])
    (tmp_path / "other" / "trajectories.jsonl").write_text("{}\n")
    with pytest.raises(SystemExit, match=r"gains: .*line 1, is no trajectory"):
        g.main(["--before", str(tmp_path / "0"), str(tmp_path / "other")])
