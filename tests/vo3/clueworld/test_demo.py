"""`make demo`: a long video, a question, a page, the right answer."""

import json

import pytest

from vo3.clueworld import demo


def test_a_seed_below_zero_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="demo: seed is -1"):
        demo.main(["--out", str(tmp_path), "--seed", "-1"])


def test_the_demo_answers_right_after_looking_where_the_clue_is(tmp_path, capsys):
    assert demo.main(["--out", str(tmp_path)]) == 0
    trajectory = json.loads((tmp_path / "demo.json").read_text())
    target = trajectory["task"]["target"]
    assert trajectory["answer"] == target["answer"]
    call = next(turn["call"] for turn in trajectory["turns"] if turn["call"])
    clue = target["clues"][0]
    assert min(call["end"], clue["end"]) > max(call["start"], clue["start"])
    assert (tmp_path / "demo.html").read_text().startswith("<!doctype html>")
    assert "vo3 ask" in capsys.readouterr().out
