"""Answers read by the official rules: cases worked out by hand from the published scripts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vo3.evals import extraction

pytestmark = pytest.mark.quick

ABCD, WORDS = list("ABCD"), ["a red dog", "the cat", "apple", "42"]


@pytest.mark.parametrize(
    ("rule", "text", "letter"),
    [
        # Reward's rule: alone, or first with a bracket or period; no space before.
        ("plain_letter", " B ", "B"),
        ("plain_letter", "(C) apple", "C"),
        ("plain_letter", "C. apple", "C"),
        ("plain_letter", " C. apple", None),
        ("plain_letter", "The answer is B", None),
        # Video-MME: the first capital A to D anywhere, after some phrases are taken out.
        ("video_mme", "B", "B"),
        ("video_mme", "The best answer is C.", "C"),
        ("video_mme", "Answer: C", "A"),
        ("video_mme", "I think B", "B"),
        ("video_mme", "Because it rains: D", "B"),
        ("video_mme", "The best option is D", "D"),
        ("video_mme", "no idea", None),
        # LongVideoBench: the same with E, and with the phrases that Video-MME's missing commas lose.
        ("long_video_bench", "Best option: E", "E"),
        ("long_video_bench", "The answer is (D)", "D"),
        ("video_mme", "Best option: D", "B"),
        # MLVU: what stands before the first bracket, or the text itself.
        ("mlvu", "(B) the cat", "B"),
        ("mlvu", "B) the cat", "B"),
        ("mlvu", "B", "B"),
        ("mlvu", "B.", None),
        ("mlvu", "The answer is B", None),
        ("mlvu", ")", None),
        # LVBench: the first character before the first bracket.
        ("lvbench", "(D) 42", "D"),
        ("lvbench", "D) 42", "D"),
        ("lvbench", "The answer is (B)", "B"),
        ("lvbench", "C because", "C"),
        ("lvbench", "The answer is C", None),  # "T"
        ("lvbench", "", None),
        # Video-Holmes: the first in the alphabet, not in the text.
        ("video_holmes", "D", "D"),
        ("video_holmes", "D, not B ", "B"),
        ("video_holmes", "F: because", "F"),
        ("video_holmes", "[C]", "C"),
        ("video_holmes", "DB", "B"),
        ("video_holmes", "none", None),
        # VideoMMMU: periods and colons first; the last one of the form wins.
        ("video_mmmu", "A. is wrong, B. is right", "B"),
        ("video_mmmu", "(A) or B. maybe", "B"),
        ("video_mmmu", "the cat looks like the animal here", "B"),
        ("video_mmmu", "the cat", None),  # five words or fewer are not searched for options
        ("video_mmmu", "", None),
        # MMMU: brackets first.
        ("mmmu", "B. is close but it is (C)", "C"),
        ("mmmu", "I say D", "D"),
        ("mmmu", "A. or so", "A"),
        # lmms-eval: a letter at the start outranks one at the end, that a phrase, that a bracket.
        ("lmms_eval", "B", "B"),
        ("lmms_eval", "B. not (A)", "B"),
        ("lmms_eval", "(A) is wrong, it is B", "B"),
        ("lmms_eval", "my answer is C (not D) at all", "D"),
        ("lmms_eval", "well, (A) or (C) then", "C"),
        ("lmms_eval", "Dog", "D"),
        ("lmms_eval", "nothing", None),
        # Ours for MMVU.
        ("standalone_letter", "B. A large dog", "B"),
        ("standalone_letter", "I choose (C).", "C"),
        ("standalone_letter", "Bob's dog", None),
        ("standalone_letter", "E", None),
        ("standalone_letter", "A force acts on the block, so the answer is C.", "C"),
        ("standalone_letter", "The answer is C. A man walks in.", "C"),
        ("standalone_letter", "A is right, not C.", "A"),
        ("standalone_letter", "A because of C", "A"),
        ("standalone_letter", "The answer is A because it falls.", "A"),
        ("standalone_letter", "A man walks in.", "A"),  # nothing else to read
    ],
)
def test_letters(rule, text, letter):
    assert getattr(extraction, rule)(text, ABCD + (["E"] if rule == "long_video_bench" else []), WORDS + ["x"] * (rule == "long_video_bench")) == letter  # fmt: skip


LETTER_RULES = (
    "plain_letter", "video_mme", "long_video_bench", "mlvu", "lvbench", "video_holmes", "video_mmmu", "mmmu",
    "lmms_eval", "standalone_letter",
)  # fmt: skip


@given(st.text(max_size=60), st.integers(2, 6))
def test_every_rule_survives_any_text(text, count):
    letters = list("ABCDEF"[:count])
    for rule in LETTER_RULES:
        found = getattr(extraction, rule)(text, letters, [f"option {x}" for x in letters])
        assert found is None or (len(found) == 1 and "A" <= found <= "F")


@given(st.sampled_from("ABCD"))
def test_the_letter_alone_is_read_by_every_rule(letter):
    for rule in LETTER_RULES:
        if rule != "video_mmmu":  # reads "B" only before a space, which trimming adds
            assert getattr(extraction, rule)(letter, ABCD, WORDS) == letter
    assert extraction.video_mmmu(letter, ABCD, WORDS) == letter


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("The value is 2.5", "2.50", True),
        ("so x = 2.504", "2.5", True),  # to two decimals
        ("so x = 2.52", "2.5", False),
        ("1,024 bytes", "1024", True),
        ("it is a red dog.", "red dog", True),
        ("B", "b", True),
        ("cab", "b", False),  # a single character never matches inside a word
        ("the answer is b and c", "b", True),
        ("", "2", False),
    ],
)
def test_open_answers_as_videommmu(text, answer, right):
    assert extraction.video_mmmu_open(text, answer) is right


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("It is the dolly zoom, clearly.", "Dolly Zoom", True),
        ("Dolly", "Dolly Zoom", False),
        ("zoom dolly", "Dolly Zoom", False),
        ("O(n²)", "O(n^2)", True),
        ("catalysis", "cat", False),
        ("anything", " ", False),
        ("3.5 m", "3.5", True),
        ("13.5 m", "3.5", False),
    ],
)
def test_containment(text, answer, right):
    assert extraction.containment(text, answer) is right
