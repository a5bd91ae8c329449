"""Lettered options in a text, as people and benchmarks write them."""

from __future__ import annotations

import pytest

from vo3.chat.options import Lettered, find_options


@pytest.mark.parametrize(
    ("text", "before", "options", "after"),
    [
        ("What?\nA. red\nB. blue", "What?", {"A": "red", "B": "blue"}, ""),
        ("What?\n(A) red\n(B) blue\n", "What?", {"A": "red", "B": "blue"}, ""),
        ("What?\nOptions:\nA) x\nB) y\nC) z", "What?", {"A": "x", "B": "y", "C": "z"}, ""),
        ("What?\n A: x \n B: y", "What?", {"A": "x", "B": "y"}, ""),
        ("What?\nA. x\nB. y\n\nAnswer so.\n\nThanks.", "What?", {"A": "x", "B": "y"}, "Answer so.\nThanks."),
        ("A. first point\nB. second\nnow\nA. x\nB. y", "A. first point\nB. second\nnow", {"A": "x", "B": "y"}, ""),
        ("A. x\nB. y", "", {"A": "x", "B": "y"}, ""),
    ],
)  # fmt: skip
def test_options_in_a_text(text, before, options, after):
    assert find_options(text) == Lettered(before, options, after)


@pytest.mark.parametrize(
    "text",
    [
        "What?\nA. red",
        "What?\nB. red\nC. blue",
        "What?\nA. red\nC. blue",
        "Is A. better than\nB. or not?",
        "A.red\nB.blue",
        "(A red\n(B blue",
        "",
    ],
)
def test_no_options_are_made_up(text):
    assert find_options(text) is None
