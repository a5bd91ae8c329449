"""Ways to earn reward without doing the task, each beside the honest rollout; what must not matter to the reward, and what must."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vo3.rewards import RewardPolicy, score_row

CLUE = (40.0, 50.0)
RECIPES = ("qwen2_5_vl", "qwen3_vl")
SOURCES = ("clue_single_w_tool", "clue_multi_w_tool", "clue_single_wo_tool", "clue_multi_wo_tool")


def call(t0, t1, think="look"):
    body = json.dumps({"temporal_segment": [t0, t1], "sampling_strategy": "fine"})
    return f"<think>{think}</think>\n<grounding>{body}</grounding>"


def answer(text="A", think="so"):
    return f"<think>{think}</think>\n<answer>{text}</answer>"


def total(turns, source="clue_single_w_tool", recipe="qwen2_5_vl"):
    solution = {"answer": "A", "clue": [{"timestamp": list(CLUE), "text": ""}]}
    row = {"doc_id": "r", "data_source": source, "solution": solution}
    return score_row(row, turns, RewardPolicy(recipe=recipe)).total


HONEST = [call(*CLUE), answer()]
# What is tried, and the most it may earn: 2 is a right answer in the right form and no bonus.
ATTEMPTS = {
    "the whole video as the window": ([call(0, 3600), answer()], 2.7),
    "a window of no length": ([call(45, 45), answer()], 2.6),
    "an empty call": (["<think>x</think>\n<grounding></grounding>", answer()], 2.0),
    "a call of nothing": (["<think>x</think>\n<grounding>{}</grounding>", answer()], 2.0),
    "the call only in the thoughts": ([answer(think=call(*CLUE, think=""))], 2.0),
    "the answer only in the thoughts": ([call(*CLUE), answer("B", think="<answer>A</answer>")], 1.0),
    "every letter": ([call(*CLUE), answer("ABCD")], 1.0),
    "every letter in answers of their own": (
        [call(*CLUE), answer("</answer><answer>".join("ABCD"))], 1.0,
    ),
    "the answer before the last turn": ([answer(), call(*CLUE)], 0.0),
    "no thought": ([call(*CLUE), "<answer>A</answer>"], 1.0),
}  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_attempts_earn_less_than_the_honest_rollout(attempt, recipe):
    turns, most = ATTEMPTS[attempt]
    assert total(HONEST, recipe=recipe) == 3.0
    assert total(turns, recipe=recipe) <= most


@pytest.mark.parametrize("recipe", RECIPES)
@given(st.integers(2, 6))
def test_repeating_a_call_never_pays(recipe, times):
    for source in SOURCES:
        once, often = ([call(*CLUE)] * n + [answer()] for n in (1, times))
        assert total(often, source, recipe) <= total(once, source, recipe)


@settings(max_examples=100)
@given(
    st.sampled_from(SOURCES),
    st.lists(st.tuples(st.integers(0, 90), st.integers(0, 90)), max_size=4),
    st.text(st.characters(exclude_characters="<>"), max_size=80),
    st.text(st.characters(exclude_characters="<>"), max_size=80),
)
def test_the_wording_of_thoughts_does_not_matter(source, windows, one, other):
    said = lambda think: [*[call(*w, think=think) for w in windows], answer(think=think)]
    for recipe in RECIPES:
        assert total(said(one), source, recipe) == total(said(other), source, recipe)


@settings(max_examples=100)
@given(st.floats(0, 9.5), st.floats(0, 9.5), st.sampled_from(SOURCES[:2]), st.sampled_from(RECIPES))
def test_more_overlap_earns_no_less(a, b, source, recipe):
    """Of two windows inside the clue that end with it, and of two that contain it from its beginning, the nearer one."""
    near, far = sorted((a, b))
    inside = [total([call(CLUE[0] + x, CLUE[1]), answer()], source, recipe) for x in (near, far)]
    around = [total([call(CLUE[0], CLUE[1] + x), answer()], source, recipe) for x in (near, far)]
    assert inside[0] >= inside[1] - 1e-12 and around[0] >= around[1] - 1e-12
    assert all(2.5 <= x <= 3 for x in (*inside, *around))
