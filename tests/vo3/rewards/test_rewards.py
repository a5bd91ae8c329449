"""The reward against hand-worked cases, an independent reference and its own properties."""

from __future__ import annotations

import json
import math

import pytest
import rewards_reference
from hypothesis import given, settings
from hypothesis import strategies as st

from vo3.rewards import RewardPolicy, Target, score, score_row, target_from_row
from vo3.rewards.answer import answered_segment
from vo3.rewards.format import block_content, call_faults
from vo3.rewards.grounding import Interval, merge, overlap
from vo3.trajectory import Clue, Task, Trajectory, Turn

QUADRANTS = ("clue_single_w_tool", "clue_multi_w_tool", "clue_single_wo_tool", "clue_multi_wo_tool")
ALIASES = {
    "clue_single_w_tool": "tool_reward_with_round_penalty",
    "clue_multi_w_tool": "tool_reward_without_round_penalty",
    "clue_single_wo_tool": "tool_penalty_single_turn",
    "clue_multi_wo_tool": "tool_free_form",
}
NEW = RewardPolicy(recipe="qwen3_vl")


def call(t0=10, t1=20, strategy="fine", think="look") -> str:
    body = json.dumps({"temporal_segment": [t0, t1], "sampling_strategy": strategy})
    return f"<think>{think}</think>\n<grounding>{body}</grounding>"


def answer(text="A", think="so") -> str:
    return f"<think>{think}</think>\n<answer>{text}</answer>"


def row(source="clue_single_w_tool", clues=((10, 20),), letter="A") -> dict:
    return {
        "doc_id": "r1",
        "data_source": source,
        "solution": {"answer": letter, "clue": [{"timestamp": list(c), "text": ""} for c in clues]},
    }


# Worked by hand. Calls [10, 20] twice against the clue [10, 30]: shared 10, union 20, so IoU 1/2, IoP 1, IoG 1/2, g2 = 5/8;
# hull centres 15 and 20, enclosing 20, DIoU = 1/2 - 1/16 = 7/16, g1 = (1/2 + 1 + 1/2 + 23/32) / 4 = 87/128.
HAND = [
    ("clue_single_w_tool", ((10, 30),), [call(), answer()], 2 + 13 / 16, 2 + 215 / 256),
    (
        "clue_single_w_tool",
        ((10, 30),),
        [call(), call(), answer()],
        2 + 0.95 * 13 / 16,
        2 + 0.95 * 215 / 256,
    ),
    # Two clues allow two calls in the first recipe: [10, 20] and [20, 30] are one interval of 20 seconds.
    ("clue_single_w_tool", ((10, 20), (20, 30)), [call(), call(20, 30), answer()], 3.0, 2.95),
    ("clue_single_w_tool", ((10, 20),), [answer()], 2.0, 2.0),
    (
        "clue_single_w_tool",
        ((10, 20),),
        [call(50, 60), answer()],
        2.5,
        2 + (1 + (1 - 0.64) / 8) / 2,
    ),
    ("clue_multi_w_tool", ((10, 30),), [call()] * 5 + [answer()], 2 + 13 / 16, 2 + 13 / 16),
    ("clue_multi_w_tool", ((10, 30),), [answer()], 2.0, 2.0),
    ("clue_single_wo_tool", ((10, 30),), [answer()], 2.75, 2.75),
    ("clue_single_wo_tool", ((10, 30),), [call(), call(), answer()], 2.675, 2.6),
    ("clue_multi_wo_tool", (), [call(), answer()], 2.5, 2.5),
    ("clue_multi_wo_tool", (), [answer("B")], 1.0, 1.0),
]


@pytest.mark.parametrize(("source", "clues", "turns", "old", "new"), HAND)
def test_hand_worked(source, clues, turns, old, new):
    assert score_row(row(source, clues), turns).total == pytest.approx(old, abs=1e-12)
    assert score_row(row(source, clues), turns, NEW).total == pytest.approx(new, abs=1e-12)
    alias = score_row(row(ALIASES[source], clues), turns).total
    assert alias == score_row(row(source, clues), turns).total


@pytest.mark.parametrize(
    ("text", "letter", "expected"),
    [
        ("A", "A", 1), (" A\n", "A", 1), ("(A) a cat", "A", 1), ("A. a cat", "A", 1), ("A.", "A", 1),
        ("a", "A", 0), (" (A)", "A", 0), (" A. a cat", "A", 0), ("A a cat", "A", 0), ("AB", "A", 0), ("B", "A", 0),
        ("(B) not (A)", "A", 0), ("", "A", 0), ("the cat", "the cat", 1), ("the cat.", "the cat", 0),
        ("B</answer><answer>A", "A", 1), ("A</answer> <answer>B", "A", 0),
    ],
)  # fmt: skip
def test_letter(text, letter, expected):
    got = score_row(row("clue_multi_wo_tool", (), letter), [answer(text)])
    assert got.accuracy == expected


def test_only_the_last_turn_answers():
    assert score_row(row(), [answer("A"), call()]).accuracy == 0
    assert score_row(row(), ["<answer>A", answer("B")]).accuracy == 0


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ([answer()], 1),
        (["\n" + answer() + "\n"], 1),
        ([answer().replace("</think>\n", "</think>")], 1),
        ([answer().replace("</think>\n", "</think>\n\n")], 0),
        ([answer().replace("</think>\n", "</think> ")], 0),
        (["\n\n" + answer()], 0),
        ([" " + answer()], 0),
        ([answer() + "."], 0),
        ([answer() + "<|im_end|>"], 0),
        (["<answer>A</answer>"], 0),
        (["<think>x</think>"], 0),
        ([call()], 0),
        ([answer(), answer()], 0),
        ([call(), call()], 0),
        ([call(), "<think>cut"], 0),
        ([], 0),
        ([call(), answer()], 1),
        ([call().replace("coarse", "big").replace("fine", "big"), answer()], 1 / 2),
        ([call(strategy=None), call(), answer()], 2 / 3),
        ([call().replace('"', "'"), answer()], 1 / 2),
        ([call() + "<grounding>{}</grounding>", answer()], 1 / 2),
        (["<think>x</think><grounding>{}</grounding>"] * 3 + [answer()], 0),
        (["<think>x</think><grounding>[1, 2]</grounding>", call(), answer()], 1 / 3),
        (['<think>x</think><grounding>{"temporal_segment": [1, 2, 3], "sampling_strategy": "x"}</grounding>', answer()], 0),
    ],
)  # fmt: skip
def test_format(turns, expected):
    assert score_row(row(), turns).format == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("content", "faults"),
    [
        ('{"temporal_segment": [1, 2], "sampling_strategy": "fine"}', 0),
        ('{"temporal_segment": [2, 1], "sampling_strategy": "fine"}', 0),
        ('{"temporal_segment": [1], "sampling_strategy": "fine"}', 1),
        ('{"temporal_segment": "1-2", "sampling_strategy": "Fine"}', 2),
        ('{"temporal_segment": [1, 2]}', 1),
        ('{"temporal_segment": [1, 2], "sampling_strategy": ["fine"]}', 1),
        ("{}", 2), ("[]", 2), ('"x"', 2), ("3", 1), ("null", 1), ("", 1), ("{", 1), ("[" * 100_000, 1),
    ],
)  # fmt: skip
def test_call_faults(content, faults):
    assert call_faults(content) == faults


def test_faults_cost_the_bonus():
    clean = score_row(row(), [call(), answer()])
    faulty = score_row(row(), [call(strategy="finest"), answer()])
    assert clean.bonus == 1.0 and clean.total == 3.0
    assert faulty.bonus == 0.0 and faulty.total == 1.5
    assert faulty.grounding == 1.0  # the window still counts as looked at


def test_intervals_merge_and_skip():
    assert merge([Interval(5, 6), Interval(0, 2), Interval(2, 3)]) == [
        Interval(0, 3),
        Interval(5, 6),
    ]
    # A reversed call is sorted; an invalid clue is skipped but still counts in m.
    assert score_row(row(), [call(20, 10), answer()]).total == 3.0
    clues = ((10, 20), (7, 7), (9, 3))
    assert score_row(row(clues=clues), [call()] * 3 + [answer()]).total == 3.0
    assert score_row(
        row(clues=((10, 20), (7, 7))), [call()] * 3 + [answer()]
    ).total == pytest.approx(2.95)
    assert score_row(row(clues=((7, 7),)), [call(), answer()]).total == 2.5
    assert overlap([], [Interval(0, 1)]) is None and overlap([Interval(0, 1)], []) is None


def test_windows_without_a_finite_length():
    for bad in (math.nan, math.inf, -math.inf):
        for policy in (RewardPolicy(), NEW):
            got = score_row(row(), [call(10, bad), call(), answer()], policy)
            assert math.isfinite(got.total) and 0 <= got.grounding <= 1
            if math.isinf(bad):
                assert got.grounding < 0.6
    assert score_row(row(), [call(10, 10**400), answer()]).grounding == 0
    assert answered_segment(f'<answer>{{"temporal_segment": [0, {10**400}]}}</answer>') is None


@pytest.mark.parametrize(
    ("text", "accuracy", "form"),
    [
        ('{"temporal_segment": [10, 20]}', 0.5, 1),
        ('{"temporal_segment": [0, 40]}', 0.5, 1),
        ('{"temporal_segment": [20, 10]}', 0, 1),
        ('{"temporal_segment": [40, 50]}', 0, 1),
        ('{"temporal_segment": [10, NaN]}', 0, 1),
        ('{"temporal_segment": ["10", "20"]}', 0, 1),
        ('{"temporal_segment": [10, 20, 30]}', 0, 0),
        ("{'temporal_segment': [10, 20]}", 0, 0),
        ("10 to 20", 0, 0),
    ],
)
def test_temporal_grounding(text, accuracy, form):
    got = score_row(row("temporal_grounding", ((10, 30),)), [answer(text)])
    assert (got.accuracy, got.format, got.bonus) == (pytest.approx(accuracy), form, 0)
    assert got.total == pytest.approx(accuracy + form)


def test_temporal_grounding_reads_the_last_turn_only():
    segment = answer('{"temporal_segment": [10, 30]}')
    assert score_row(row("temporal_grounding", ((10, 30),)), ["junk", segment]).total == 2.0
    assert score_row(row("temporal_grounding", ((10, 30),)), [segment, "junk"]).total == 0.0
    with pytest.raises(ValueError, match="needs one clue"):
        score_row(row("temporal_grounding", ()), [segment])


def test_score_reads_the_assistant_turns():
    turns = (
        Turn("system", "s"),
        Turn("question", "<answer>B</answer>"),
        Turn("call", call()),
        Turn("error", "<grounding>{}</grounding>"),
        Turn("answer", answer()),
    )
    trajectory = Trajectory(Task("t", "v.mp4", "q"), turns, "answered", "A")
    target = Target("A", (Clue(10, 30),), "clue_single_w_tool")
    assert score(trajectory, target) == score_row(row(clues=((10, 30),)), [call(), answer()])
    empty = Trajectory(Task("t", "v.mp4", "q"), turns[:2], "void")
    assert score(empty, target).total == 0.0


def test_weights_and_decay():
    policy = RewardPolicy(accuracy_weight=2.0, format_weight=0.5, decay=0.2)
    got = score_row(row(), [call(), call(), answer()], policy)
    assert got.total == pytest.approx(2.0 + 0.5 + 0.8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: score_row(row("clue_single"), [answer()]),
            "no reward for data_source 'clue_single'",
        ),
        (lambda: RewardPolicy(recipe="qwen4"), "unknown reward recipe"),
        (lambda: RewardPolicy(decay=math.nan), "decay must be finite"),
        (lambda: RewardPolicy(data_sources={"x": "guess"}), "unknown reward rules"),
        (lambda: score_row(row(), answer()), "one string"),
        (lambda: target_from_row({"data_source": "x", "doc_id": 7}), "RL row 7 needs"),
        (lambda: target_from_row({**row(), "solution": {"answer": 3}}), "must be text"),
        (
            lambda: target_from_row({**row(), "solution": {"clue": [{"timestamp": [1]}]}}),
            "two seconds",
        ),
        (
            lambda: target_from_row({**row(), "solution": {"clue": [{"timestamp": [1, 10**400]}]}}),
            "two seconds",
        ),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


seconds = st.integers(0, 400).map(lambda x: x / 4)
windows = st.tuples(seconds, seconds)
newline = st.sampled_from(["", "\n", "\n\n"])
texts = st.sampled_from(
    ["look", "", "a\nb", "</think>", "<grounding>{}</grounding>", "<answer>A</answer>", "<think>"]
)
contents = st.one_of(
    st.builds(
        lambda w, s: json.dumps({"temporal_segment": list(w), "sampling_strategy": s}),
        windows,
        st.sampled_from(["coarse", "medium", "fine", "finest"]),
    ),
    st.sampled_from(["{}", "", "{'a': 1}", '{"sampling_strategy": "fine"}']),
)
call_turns = st.builds(
    lambda a, t, b, c, d: f"{a}<think>{t}</think>{b}<grounding>{c}</grounding>{d}",
    newline,
    texts,
    newline,
    contents,
    newline,
)
answer_turns = st.builds(
    lambda a, t, b, c, d: f"{a}<think>{t}</think>{b}<answer>{c}</answer>{d}",
    newline, texts, newline, st.sampled_from(["A", " A ", "(A) x", "A. x", "B", "", "A</answer><answer>B"]), newline,
)  # fmt: skip
clean_calls = st.builds(
    lambda w, s: call(*w, strategy=s), windows, st.sampled_from(["coarse", "fine"])
)
any_turns = st.one_of(
    st.builds(lambda c, a: [*c, a], st.lists(clean_calls, max_size=5), st.just(answer())),
    st.builds(
        lambda c, a: [*c, a], st.lists(st.one_of(clean_calls, call_turns), max_size=4), answer_turns
    ),
    st.lists(st.one_of(call_turns, answer_turns, texts), min_size=1, max_size=4),
)


@settings(max_examples=400, deadline=None)
@given(
    any_turns,
    st.lists(windows, max_size=3),
    st.sampled_from(QUADRANTS),
    st.sampled_from(["qwen2_5_vl", "qwen3_vl"]),
)
def test_against_the_reference(turns, clues, source, recipe):
    got = score_row(row(source, clues), turns, RewardPolicy(recipe=recipe))
    assert got.total == pytest.approx(
        rewards_reference.total(turns, "A", clues, source, recipe), abs=1e-9
    )
    assert 0 <= got.total <= 3 and 0 <= got.grounding <= 1 and 0 <= got.format <= 1
    assert got.total == pytest.approx(got.accuracy + got.format + got.bonus)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60), st.lists(st.text(max_size=60), max_size=3))
def test_any_text_has_a_reward(last, earlier):
    assert math.isfinite(score_row(row(), [*earlier, last]).total)
    assert block_content(last, "answer") is None or last.strip().startswith("<think>")


@settings(max_examples=100, deadline=None)
@given(st.floats(0, 10), st.sampled_from(QUADRANTS[:2]), st.sampled_from([RewardPolicy(), NEW]))
def test_nearer_windows_earn_no_less(shift, source, policy):
    """A window of the clue's length earns less the farther it lies; inflating it on both sides also costs."""

    def at(a, b):
        return score_row(row(source, ((40, 50),)), [call(a, b), answer()], policy).total

    assert at(40, 50) >= at(40 + shift / 2, 50 + shift / 2) >= at(40 + shift, 50 + shift)
    assert at(40, 50) >= at(40 - shift / 2, 50 + shift / 2) >= at(40 - shift, 50 + shift)


def test_hacking_pays_nothing():
    honest = score_row(row(clues=((40, 50),)), [call(40, 50), answer()]).total
    everything = score_row(row(clues=((40, 50),)), [call(0, 1000), answer()]).total
    repeated = score_row(row(clues=((40, 50),)), [call(40, 50)] * 4 + [answer()]).total
    spam = score_row(
        row(), [f"<think>x</think><answer>{'</answer><answer>'.join('BCDA')}</answer>"]
    )
    hidden = score_row(row("clue_single_wo_tool"), [answer("B", think="<answer>A</answer>")])
    wording = score_row(row(clues=((40, 50),)), [call(40, 50, think="x" * 10_000), answer()]).total
    assert honest == wording == 3.0
    assert everything < 2.65 and repeated == pytest.approx(2.85)
    assert spam.bonus == 0.0 or spam.total <= 2.0  # no call: nothing above the base score
    assert hidden.accuracy == 0.0
