"""Lettered options in a text, as people and benchmarks write them."""

from __future__ import annotations

import re
import string
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

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


_LINE = re.compile(r"\s*(?:\(([A-Z])\)|([A-Z])[.):])\s+(\S.*?)\s*$")
_HEADING = re.compile(r"\s*(?:the\s+)?(?:answer\s+)?(?:options|choices|candidates)\s*:?\s*$", re.I)


def first_version(text):
    """What is found, in the plainest way; it takes the square of the text's length."""

    def options_from(start):
        options = {}
        for letter, line in zip(string.ascii_uppercase, lines[start:], strict=False):
            match = _LINE.match(line)
            if match is None or (match[1] or match[2]) != letter:
                break
            options[letter] = match[3]
        return options

    lines, block, at = text.splitlines(), None, 0
    while at < len(lines):
        found = options_from(at)
        if len(found) >= 2:
            block = (at, found)
        at += max(len(found), 1)
    if block is None:
        return None
    start, options = block
    before, after = lines[:start], lines[start + len(options) :]
    while before and (not before[-1].strip() or _HEADING.match(before[-1])):
        before.pop()
    rest = (line for line in after if line.strip())
    return Lettered("\n".join(before).strip(), options, "\n".join(rest).strip())


SPACES = st.text(" \t\x1f\xa0\u3000\u200b", max_size=3)
PIECES = st.one_of(
    st.sampled_from(
        [f"{letter}{mark}" for letter in "ABC" for mark in ".):"]
        + ["(A)", "(B)", "the", "Answer", "options", "CHOICES", "optionſ", ":", "x"]
    ),
    st.text(max_size=2),
    SPACES,
)
LINES = st.one_of(
    st.lists(PIECES, max_size=6).map("".join),
    st.builds("{}({}){}{}{}".format, SPACES, st.sampled_from("ABC"), SPACES, PIECES, SPACES),
    st.builds("{}{}. {}{}".format, SPACES, st.sampled_from("ABC"), PIECES, SPACES),
    st.builds("{}the {}options{}:{}".format, SPACES, SPACES, SPACES, SPACES),
)
ENDS = st.sampled_from(["\n", "\r\n", "\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028"])


@given(st.lists(st.tuples(LINES, ENDS), max_size=8), st.booleans())
@example(
    [("What? ", "\n"), ("Options : ", "\n"), (" ", "\n"), ("A. x ", "\n"), (" (B)\xa0y", "\r")],
    False,
)
def test_options_are_those_of_the_plainest_way(lines, lettered):
    text = "".join(line + end for line, end in lines)
    if lettered:
        text += "A. x\n\u3000(B)  y z \n"
    assert find_options(text) == first_version(text)


@pytest.mark.parametrize(
    "text",
    [
        "A. x" + " " * 60_000 + "y\nB. z",
        "options" + " " * 60_000 + "x\nA. x\nB. y",
        "A. x\n" * 100_000,
        "\n" * 100_000,
    ],
    ids=["spaces", "heading", "options", "lines"],
)
def test_long_texts_take_no_longer_than_their_length(text):
    """They took the square of it, in which no other thread ran."""
    began = time.thread_time()
    find_options(text)
    assert time.thread_time() - began < 2
