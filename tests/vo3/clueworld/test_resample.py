"""Intervals over worlds and runs, beside formulas and simulated experiments."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vo3.clueworld.figures import Share
from vo3.clueworld.resample import interval, world_of


def test_the_world_of_a_question():
    assert world_of("50001-clue_single_w_tool-0-digit") == "50001"


def test_one_run_and_a_question_a_world_is_the_interval_of_a_proportion():
    right = np.arange(400) % 5 > 0
    low, high = interval(right[None].astype(float), [str(i) for i in range(400)])
    np.testing.assert_allclose((low, high), Share(320, 400).interval, atol=0.005)


def test_questions_of_one_world_are_not_independent():
    right = np.repeat(np.arange(40) % 4 > 0, 10).astype(float)[None]
    alone = interval(right, [str(i) for i in range(400)])
    together = interval(right, [str(i // 10) for i in range(400)])
    # The same answers ten times: as wide as of 40 questions.
    np.testing.assert_allclose(np.diff(together), np.diff(Share(30, 40).interval), rtol=0.1)
    assert np.diff(together) > 2.5 * np.diff(alone)


def test_runs_that_agree_are_not_more_questions():
    right = (np.arange(100) % 4 > 0).astype(float)[None]
    worlds = [str(i) for i in range(100)]
    np.testing.assert_allclose(interval(right.repeat(3, 0), worlds), interval(right, worlds), atol=0.01)  # fmt: skip


def test_what_only_runs_differ_in_is_the_spread_of_runs():
    runs = np.array([0.7, 0.8, 0.9, 0.8, 0.7, 0.9])
    low, high = interval(np.tile(runs[:, None], (1, 50)), [str(i) for i in range(50)])
    half = 1.96 * runs.std(ddof=1) / np.sqrt(len(runs))
    assert (low + high) / 2 == pytest.approx(0.8, abs=0.01)
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)


@given(st.integers(1, 4), st.integers(1, 30), st.integers(0, 2**30))
def test_it_is_a_function_of_the_answers_and_holds_the_mean(runs, questions, seed):
    rng = np.random.default_rng(seed)
    values = rng.random((runs, questions))
    worlds = [str(i) for i in rng.integers(0, 10, questions)]
    low, high = interval(values, worlds)
    assert (low, high) == interval(values, worlds)
    assert low <= values.mean() + 1e-9 and values.mean() - 1e-9 <= high


def test_nothing_is_refused():
    with pytest.raises(ValueError, match="2 runs of 0 questions"):
        interval(np.zeros((2, 0)), [])
    with pytest.raises(ValueError, match="on 1 worlds"):
        interval(np.zeros((2, 3)), ["1"])
