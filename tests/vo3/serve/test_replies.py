"""Turns split into what is thought and what is answered, as they are written."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vo3.chat.dialects import get_dialect
from vo3.serve.replies import Splitter

_WORDS = st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "<grounding>{}</grounding>", "a", "<", "/", " ", "\n", "think>", "</ans", "Ü", "wer>"])  # fmt: skip


def split(text: str, sizes) -> dict[str, str]:
    """What is shown of a turn that comes in pieces of these sizes."""
    splitter, shown, at = Splitter(get_dialect("video-o3")), {"think": "", "answer": ""}, 0
    for size in sizes:
        kind, piece = splitter.push(2, text[at : at + size])
        shown[kind] += piece
        at += size
    kind, piece = splitter.push(2, text[at:])
    shown[kind] += piece
    return shown


@given(st.text("abc <>/\n", max_size=20), st.text("xyz <>/\n", max_size=20), st.lists(st.integers(1, 9), max_size=12))  # fmt: skip
def test_what_is_shown_does_not_depend_on_how_it_comes(thought, answer, sizes):
    """A think text and an answer, in pieces of any size, tags cut anywhere."""
    text = f"<think>{thought}</think>\n<answer>{answer}</answer>"
    whole = split(text, [1] * len(text))
    assert whole["answer"] == answer.strip()
    assert split(text, sizes + [3] * len(text))["answer"] == answer.strip()
    assert whole["think"] == thought.strip()


@given(st.lists(_WORDS, max_size=20), st.lists(st.integers(1, 7), max_size=30))
def test_no_text_breaks_it_and_no_call_is_shown(words, sizes):
    """Whatever comes before the call: a call behind it is no part of what is shown."""
    text = "".join(words) + "</think></answer><grounding>call</grounding>"
    shown = split(text, sizes + [2] * len(text))
    assert not any("call" in piece for piece in shown.values())


def test_turns_do_not_run_into_each_other():
    splitter = Splitter(get_dialect("video-o3"))
    assert splitter.push(2, "<think>one") == ("think", "one")
    assert splitter.push(4, "two<think>three") == ("think", "\nthree")
