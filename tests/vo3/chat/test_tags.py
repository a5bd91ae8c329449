"""The tag parser: what it accepts, what it refuses and how it says so, and that nothing makes it raise."""

from __future__ import annotations

import json
import math
import re

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings

from vo3.chat.tags import (
    ParsedTurn,
    Segment,
    blocks,
    format_answer,
    format_call,
    format_segment,
    format_turn,
    parse_segment,
    parse_turn,
)
from vo3.trajectory import STRATEGIES, Call

pytestmark = pytest.mark.quick

GOOD = '{"temporal_segment": [10, 20.5], "sampling_strategy": "fine"}'


def call_of(content: str, duration: float = 100.0) -> ParsedTurn:
    parsed = parse_turn(f"<think>hm</think>\n<grounding>{content}</grounding>", duration)
    assert parsed.kind == "call"
    assert (parsed.call is None) != (parsed.error is None)
    return parsed


def segment(t0, t1) -> str:
    return json.dumps({"temporal_segment": [t0, t1], "sampling_strategy": "coarse"})


@pytest.mark.parametrize(
    "content",
    [
        GOOD,
        GOOD.replace('"', "'"),
        f"\n  {GOOD}\n",
        f"```json\n{GOOD}\n```",
        f"I look at {GOOD} now",
        GOOD[:-1] + ', "why": {"a": [1]}}',
        '{"sampling_strategy": "fine", "temporal_segment": [1e1, 2.05e1]}',
        '{"temporal_segment": [10,20.5],"sampling_strategy":\n"fine"}',
    ],
)
def test_a_well_meant_call_is_read(content):
    assert call_of(content).call == Call(10.0, 20.5, "fine")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "no JSON object"),
        ("look at 10 to 20", "no JSON object"),
        ("} {", "no JSON object"),
        ("{", "no JSON object"),
        ("{10, 20}", "not valid JSON"),
        (GOOD + " or " + GOOD, "not valid JSON"),  # first { to last }
        ("{" * 20000 + "}" * 20000, "not valid JSON"),
        ('{"a": ' + "[" * 20000 + "]" * 20000 + "}", "not valid JSON"),
        ("{}", "'temporal_segment' and the key 'sampling_strategy' is missing"),
        ('{"temporal_segment": [1, 5]}', "the key 'sampling_strategy' is missing"),
        ('{"sampling_strategy": "fine"}', "the key 'temporal_segment' is missing"),
        (GOOD.replace("fine", "Fine"), '"Fine"; it must be one of coarse, medium, fine'),
        (GOOD.replace('"fine"', "null"), "null; it must be one of"),
        (GOOD.replace('"fine"', '["fine"]'), "it must be one of"),
        (GOOD.replace('"fine"', '{"fine": 1}'), "it must be one of"),
        (GOOD.replace("fine", "x" * 5000), "xxx... *; it must be one of"),
        (GOOD.replace("[10, 20.5]", "[10]"), "must be two times"),
        (GOOD.replace("[10, 20.5]", "[]"), "must be two times"),
        (GOOD.replace("[10, 20.5]", "[1, 2, 3]"), "must be two times"),
        (GOOD.replace("[10, 20.5]", '"10-20"'), "must be two times"),
        (GOOD.replace("[10, 20.5]", "[[1, 5], [7, 9]]"), "not a number"),
        (GOOD.replace("10", '"10"'), 'holds "10", which is not a number'),
        (GOOD.replace("10", "true"), "holds true, which is not a number"),
        (GOOD.replace("10", "null"), "holds null, which is not a number"),
        (GOOD.replace("10", "NaN"), "not a finite number"),
        (GOOD.replace("10", "-Infinity"), "not a finite number"),
        (GOOD.replace("20.5", "1e999"), "not a finite number"),
        (GOOD.replace("20.5", "1" + "0" * 400), "not a finite number"),
        (GOOD.replace("20.5", "1" * 5000), "not valid JSON"),  # beyond Python's digit limit
        (segment(20, 10), r"\[20, 10\] is reversed"),
        (segment(-5, -1), "outside the video"),
        (segment(100, 120), "outside the video, which lasts from 0 to 100 seconds"),
        (segment(5, 5), "covers 0 seconds"),
        (segment(5, 5.5), "covers 0.5 seconds of the video. It must cover at least 1 second"),
        (segment(99.5, 130), "covers 0.5 seconds"),
        (segment(-10, 0.25), "covers 0.25 seconds"),
    ],
)
def test_a_bad_call_says_what_is_wrong(content, says):
    error = call_of(content).error
    assert error is not None
    assert re.search(says, error), error
    assert len(error) < 300


def test_the_window_is_clipped_to_the_video():
    assert call_of(segment(-3, 12)).call == Call(0.0, 12.0, "coarse")
    assert call_of(segment(90, 1e9)).call == Call(90.0, 100.0, "coarse")
    assert call_of(segment(-1e300, 1e300)).call == Call(0.0, 100.0, "coarse")
    assert call_of(segment(0, 1)).call == Call(0.0, 1.0, "coarse")


def test_one_second_is_enough_whatever_its_binary_digits():
    assert 1.9 - 0.9 < 1
    assert call_of(segment(0.9, 1.9)).call == Call(0.9, 1.9, "coarse")


@pytest.mark.parametrize(
    ("text", "kind", "answer"),
    [
        ("", "text", None),
        ("It is B.", "text", None),
        ("<think>a</think>", "text", None),
        ("<think>a</think>\n<answer> B </answer>", "answer", "B"),
        ("<answer></answer>", "answer", ""),
        ("<answer>A</answer> no, <answer>B</answer>", "answer", "B"),
        ("<answer>A", "text", None),
        ("A</answer>", "text", None),
        ("</answer>A<answer>", "text", None),
        ("<think>then I write <answer> so</think>\n<answer>B</answer>", "answer", "B"),
        ("<answer>a <answer>b</answer> c</answer>", "answer", "b"),
        (f"<grounding>{GOOD}", "text", None),
        (f"<grounding>{GOOD}</grounding> so <answer>A</answer>", "answer", "A"),
        (f"<answer>A</answer> but <grounding>{GOOD}</grounding>", "call", None),
        (f"<answer><grounding>{GOOD}</grounding></answer>", "answer", f"<grounding>{GOOD}</grounding>"),
        ("<ANSWER>A</ANSWER>", "text", None),
    ],
)  # fmt: skip
def test_what_closes_last_decides(text, kind, answer):
    parsed = parse_turn(text, 100.0)
    assert (parsed.kind, parsed.answer) == (kind, answer)


def test_the_last_call_counts():
    first = GOOD.replace("10", "1")
    text = f"<grounding>{first}</grounding>\n<grounding>{GOOD}</grounding>"
    assert parse_turn(text, 100.0).call == Call(10.0, 20.5, "fine")
    nested = f"<grounding> I mean <grounding>{GOOD}</grounding>"
    assert parse_turn(nested, 100.0).call == Call(10.0, 20.5, "fine")


def test_think_text_is_kept():
    text = format_turn("why " * 2500, format_call(Call(1, 3, "medium")))
    parsed = parse_turn(text, 100.0)
    assert parsed.think == ("why " * 2500).strip()
    assert parsed.call == Call(1.0, 3.0, "medium")
    assert parse_turn("<answer>A</answer>", 9.0).think is None


def test_blocks_are_characters_of_contents():
    text = "<a>x</a> <a>yy <a>z</a> </a>"
    assert [text[i:j] for i, j in blocks(text, "a")] == ["x", "z"]


@pytest.mark.parametrize("duration", [0.0, -1.0, math.nan])
def test_a_duration_must_be_a_length(duration):
    with pytest.raises(ValueError, match="duration must be"):
        parse_turn("", duration)


pieces = st.sampled_from(
    ["<think>", "</think>", "<grounding>", "</grounding>", "<answer>", "</answer>", "{", "}", '"', "'",
     "[", "]", ",", ":", "temporal_segment", "sampling_strategy", "fine", "1", "2.5", "-", "e9", "NaN",
     "true", "null", "\\", "\ud800", "\x00", "\n", " ", GOOD, GOOD.replace('"', "'"), "<|im_end|>"]
)  # fmt: skip


@settings(max_examples=500)
@given(
    st.one_of(st.text(), st.lists(pieces | st.text(max_size=3), max_size=40).map("".join)),
    st.floats(0.01, 1e6) | st.just(math.inf),
)
@example("<grounding>" + "[" * 100000 + "</grounding>", 5.0)
@example("<grounding>{" + '"a":{' * 50000 + "}</grounding>", 5.0)
@example("<answer>" * 20000 + "</answer>" * 20000, 5.0)
def test_nothing_makes_it_raise(text, duration):
    parsed = parse_turn(text, duration)
    fields = (parsed.call, parsed.error, parsed.answer)
    assert sum(f is not None for f in fields) == (parsed.kind != "text")
    if parsed.call is not None:
        assert 0 <= parsed.call.start < parsed.call.end <= duration
        assert parsed.call.end - parsed.call.start >= 1 - 1e-6
    parse_segment(text)


@settings(max_examples=200)
@given(st.text(max_size=80))
def test_any_content_of_a_call_is_a_call_or_an_error(content):
    parsed = parse_turn(f"<grounding>{{{content}}}</grounding>", 50.0)
    assert parsed.kind == "call"
    assert (parsed.call is None) != (parsed.error is None)


@given(
    st.floats(0, 1e5).flatmap(lambda a: st.tuples(st.just(a), st.floats(a + 1, a + 1e5))),
    st.sampled_from(STRATEGIES),
    st.text(st.characters(exclude_characters="<>"), max_size=40),
)
def test_formatting_a_call_is_the_inverse(window, strategy, think):
    call = Call(*window, strategy)
    parsed = parse_turn(format_turn(think, format_call(call)), 1e9)
    assert parsed == ParsedTurn("call", call=call, think=think.strip())


@given(st.text(st.characters(exclude_characters="<>"), max_size=40))
def test_formatting_an_answer_is_the_inverse(answer):
    parsed = parse_turn(format_turn("", format_answer(answer)), 10.0)
    assert parsed == ParsedTurn("answer", answer=answer.strip(), think="")


def test_times_are_written_with_the_digits_asked_for():
    assert format_call(Call(1, 20.26, "fine"), decimals=1) == (
        '<grounding>{"temporal_segment": [1.0, 20.3], "sampling_strategy": "fine"}</grounding>'
    )
    assert format_segment(Segment(1, 20.26), decimals=0) == '{"temporal_segment": [1, 20]}'


def test_the_answer_of_temporal_grounding():
    assert parse_segment(format_segment(Segment(3.25, 7.5))) == Segment(3.25, 7.5)
    assert parse_segment("{'temporal_segment': [9, 4]}") == Segment(4.0, 9.0)
    assert "missing" in parse_segment("{}")
    assert "no JSON" in parse_segment("from 3 to 7")
    assert "two times" in parse_segment('{"temporal_segment": 3}')
    assert "finite" in parse_segment('{"temporal_segment": [NaN, 3]}')
