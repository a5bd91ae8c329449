"""Calls of every dialect: what is accepted, what is refused and how it says so, and that nothing makes reading raise."""

from __future__ import annotations

import re

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from vo3.chat.dialects import DIALECTS, get_dialect
from vo3.chat.dialects.longvt import LongVT
from vo3.chat.dialects.video_o3 import VideoO3
from vo3.chat.dialects.videozoomer import RATES, strategy_of
from vo3.chat.tags import format_answer, format_call, format_turn, parse_turn
from vo3.rollout import RolloutPolicy
from vo3.trajectory import Call

pytestmark = pytest.mark.quick

O3, LONGVT, ZOOMER = DIALECTS.values()
CROP = '{"name": "crop_video", "arguments": {"video_path": "v.mp4", "start_time": 10, "end_time": 20.5}}'
ZOOM = '{"segment": [10, 18], "fps": 2}'


def call_of(dialect, content, duration=100.0):
    parsed = dialect.parse(f"<think>hm</think>\n<{dialect.tag}>{content}</{dialect.tag}>", duration)
    assert parsed.kind == "call" and parsed.think == "hm"
    assert (parsed.call is None) != (parsed.error is None)
    return parsed


@pytest.mark.parametrize(
    ("dialect", "content", "call"),
    [
        (LONGVT, CROP, Call(10.0, 20.5, None)),
        (LONGVT, f"\n{CROP}\n", Call(10.0, 20.5, None)),
        (LONGVT, CROP.replace('"', "'"), Call(10.0, 20.5, None)),
        (LONGVT, CROP.replace("10", '"10"'), Call(10.0, 20.5, None)),
        (LONGVT, CROP.replace("v.mp4", "/etc/passwd"), Call(10.0, 20.5, None)),
        (LONGVT, CROP.replace("20.5", "1e9"), Call(10.0, 100.0, None)),
        (LONGVT, '{"name": "crop_video", "arguments": "{\\"start_time\\": 1, \\"end_time\\": 4}"}', Call(1.0, 4.0, None)),
        (ZOOMER, ZOOM, Call(10.0, 18.0, None, 2.0)),
        (ZOOMER, f" {ZOOM} ", Call(10.0, 18.0, None, 2.0)),
        (ZOOMER, '{"fps": "0.5", "segment": ["0", "32"]}', Call(0.0, 32.0, None, 0.5)),
        (ZOOMER, '{"segment": [-5, 3], "fps": 2}', Call(0.0, 3.0, None, 2.0)),
        (ZOOMER, '{"segment": [96, 104], "fps": 2}', Call(96.0, 100.0, None, 2.0)),
        # 16 frames are allowed, and a fraction of a frame is none.
        (ZOOMER, '{"segment": [0, 8.4], "fps": 2}', Call(0.0, 8.4, None, 2.0)),
    ],
)  # fmt: skip
def test_a_well_meant_call_is_read(dialect, content, call):
    assert call_of(dialect, content).call == call


@pytest.mark.parametrize(
    ("dialect", "content", "says"),
    [
        (LONGVT, "", "no JSON object.*crop_video"),
        (LONGVT, "{10, 20}", "not valid JSON"),
        (LONGVT, "[]", "no JSON object"),
        (LONGVT, CROP.replace("crop_video", "zoom_in"), 'no tool "zoom_in"; the only one is crop_video'),
        (LONGVT, '{"arguments": {}}', "no tool null"),
        (LONGVT, '{"name": "crop_video"}', "arguments are null"),
        (LONGVT, '{"name": "crop_video", "arguments": "x"}', "its arguments: there is no JSON"),
        (LONGVT, CROP.replace("end_time", "end"), "the argument 'end_time' is missing"),
        (LONGVT, CROP.replace("10", "true"), "start_time is true, which is not a finite number"),
        (LONGVT, CROP.replace("10", '"ten"'), 'start_time is "ten"'),
        (LONGVT, CROP.replace("20.5", "NaN"), "end_time is NaN"),
        (LONGVT, CROP.replace("20.5", "1" + "0" * 400), "end_time is 1000"),
        (LONGVT, CROP.replace("10", "-1"), "start_time is -1; it must not be negative"),
        (LONGVT, CROP.replace("20.5", "10"), "end_time 10 is not after start_time 10"),
        (LONGVT, CROP.replace("10", "100").replace("20.5", "120"), "beyond the video, which lasts 100 seconds"),
        (ZOOMER, "look there", "no JSON object.*segment"),
        (ZOOMER, f"{ZOOM} {ZOOM}", "not valid JSON"),
        (ZOOMER, '{"segment": [1, 2]}', "the key 'fps' is missing"),
        (ZOOMER, '{"segment": 3, "fps": 1}', "it must be two times"),
        (ZOOMER, '{"segment": [1, 2, 3], "fps": 1}', "it must be two times"),
        (ZOOMER, '{"segment": [1, null], "fps": 1}', "segment is null"),
        (ZOOMER, ZOOM.replace("2}", "0}"), "fps is 0; it must be above 0"),
        (ZOOMER, ZOOM.replace("2}", "Infinity}"), "fps is Infinity, which is not a finite number"),
        (ZOOMER, '{"segment": [5, 5], "fps": 1}', "does not end after it starts"),
        (ZOOMER, '{"segment": [100, 108], "fps": 1}', "outside the video, which lasts from 0 to 100"),
        (ZOOMER, '{"segment": [0, 8.5], "fps": 2}', "17 frames; at most 16"),
        (ZOOMER, '{"segment": [0, 60], "fps": 1e300}', "at most 16"),
        (ZOOMER, '{"segment": [0, 0.4], "fps": 2}', "show no frame"),
        (ZOOMER, '{"segment": [99.8, 104], "fps": 2}', "0.2 seconds of the video at 2 frames per second show no frame"),
    ],
)  # fmt: skip
def test_a_bad_call_says_what_is_wrong(dialect, content, says):
    error = call_of(dialect, content).error
    assert error is not None and re.search(says, error), error
    assert len(error) < 300


@pytest.mark.parametrize("dialect", [LONGVT, ZOOMER])
def test_turns_are_told_apart_as_in_the_default_dialect(dialect):
    block = dialect.format_call(Call(1, 5, None, 1.0), video="v.mp4")
    assert dialect.parse("It is B.", 9.0).kind == "text"
    assert dialect.parse(f"<think>a</think>{block}", 9.0).call.start == 1.0
    assert dialect.parse(f"{block} so <answer>A</answer>", 9.0).answer == "A"
    assert dialect.parse(f"<answer>A</answer> but {block}", 9.0).kind == "call"
    # The others' calls are words.
    assert dialect.parse(format_call(Call(1, 5, "fine")), 9.0).kind == "text"
    assert parse_turn(block, 9.0).kind == "text"


def test_an_answer_in_a_box():
    for text, answer in (
        (r"<answer>\boxed{C}</answer>", "C"),
        (r"<answer> The answer is \boxed{ a {b} c } </answer>", "a {b} c"),
        ("<answer> C </answer>", "C"),
    ):
        assert ZOOMER.parse(text, 9.0).answer == answer
    assert O3.parse(r"<answer>\boxed{C}</answer>", 9.0).answer == r"\boxed{C}"


windows = st.floats(0, 1e4).flatmap(lambda a: st.tuples(st.just(a), st.floats(a + 1, a + 9)))
words = st.text(st.characters(exclude_characters="<>"), max_size=20)


@given(windows, words, words)
def test_formatting_a_call_is_the_inverse(window, think, path):
    for dialect, call in (
        (O3, Call(*window, "fine")),
        (LONGVT, Call(*window, None)),
        (ZOOMER, Call(*window, None, 1.5)),
    ):
        text = format_turn(think, dialect.format_call(call, video=path))
        parsed = dialect.parse(text, 1e9)
        assert (parsed.call, parsed.think) == (call, think.strip())
    assert LongVT.path(LONGVT.write_call(Call(*window, None), video=path)) == path


@given(windows, st.sampled_from(list(RATES)))
def test_a_strategy_survives_as_a_rate(window, strategy):
    there = ZOOMER.write_call(Call(window[0], window[0] + 4, strategy))
    call = ZOOMER.read_call(there, 1e9)
    assert strategy_of(call.fps) == strategy and call.strategy is None
    assert O3.read_call(O3.write_call(Call(*window, None)), 1e9).strategy == "medium"


pieces = st.sampled_from(
    ["<think>", "</think>", "<tool_call>", "</tool_call>", "<video_zoom>", "</video_zoom>", "<answer>", "</answer>", "\\boxed{",
     "{", "}", '"', "'", "[", "]", ",", ":", "name", "crop_video", "arguments", "start_time", "end_time", "segment", "fps", "1",
     "2.5", "-", "e999", "NaN", "true", "null", "\\", "\ud800", "\x00", "\n", CROP, ZOOM]
)  # fmt: skip


@settings(max_examples=300)
@given(
    st.lists(pieces | st.text(max_size=3), max_size=40).map("".join),
    st.floats(0.01, 1e6) | st.just(float("inf")),
    st.sampled_from([LONGVT, ZOOMER]),
)
def test_nothing_makes_it_raise(text, duration, dialect):
    for parsed in (
        dialect.parse(text, duration),
        dialect.parse(f"<{dialect.tag}>{text}{dialect.call_end}", duration),
    ):
        fields = (parsed.call, parsed.error, parsed.answer)
        assert sum(f is not None for f in fields) == (parsed.kind != "text")
        if parsed.call is not None:
            assert 0 <= parsed.call.start < parsed.call.end <= duration


@settings(max_examples=200)
@given(st.lists(pieces, max_size=30).map("".join), st.floats(0.5, 1e5))
def test_the_default_dialect_is_the_tag_parser(text, duration):
    assert O3.parse(text, duration) == parse_turn(text, duration)
    call = Call(0.5, 0.5 + duration, "coarse")
    assert O3.format_call(call) == format_call(call)


def test_limits_are_the_published_ones():
    """Video-o3: its published settings (arXiv 2601.23224); LongVT and VideoZoomer: their repositories, see the modules."""
    policy = RolloutPolicy()
    assert policy == RolloutPolicy(dialect="video-o3")
    assert (policy.max_turns, policy.stop) == (8, ("</grounding>", "</answer>"))
    policy = RolloutPolicy(dialect="longvt")
    assert (policy.max_turns, policy.stop, policy.limits.max_length) == (
        5,
        ("</tool_call>",),
        128_000,
    )
    # Five turns, the last of which must answer.
    policy = RolloutPolicy(dialect="videozoomer", max_new_tokens=7)
    assert (policy.max_turns, policy.force_answer, policy.max_new_tokens) == (4, True, 7)
    assert RolloutPolicy("rl", dialect="longvt").force_answer is False


class Spoken(VideoO3):
    name = "spoken"


SPOKEN = Spoken()


def test_a_dialect_of_ones_own_is_found_by_module_and_name():
    assert get_dialect(f"{__name__}:SPOKEN") is SPOKEN
    for wrong, says in (
        ("long-vt", "one of video-o3, longvt, videozoomer"),
        (f"{__name__}:Spoken", "not an instance of Dialect"),
        (f"{__name__}:nothing", "NoneType"),
        ("no.such.module:X", "No module named"),
    ):
        with pytest.raises(ValueError, match=says):
            get_dialect(wrong)
    with pytest.raises(ValueError, match="unknown dialect"):
        RolloutPolicy(dialect="long-vt")
    assert format_answer("x") == "<answer>x</answer>"
