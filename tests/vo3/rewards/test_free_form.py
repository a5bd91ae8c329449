"""ROUGE and numbers: off by default, in their bounds, and never longer than the wall clock."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vo3.rewards import RewardPolicy, score_row
from vo3.rewards.free_form import Pool, numeric, rouge

ROW = {
    "doc_id": "r",
    "data_source": "clue_multi_wo_tool",
    "solution": {"answer": "a red car", "clue": []},
}


def said(text):
    return [f"<think>x</think>\n<answer>{text}</answer>"]


def test_off_by_default():
    assert score_row(ROW, said("red car")).accuracy == 0
    assert score_row(ROW, said("a red car")).total == 2.5


def test_rouge_is_hand_worked():
    # 2 of 2 and 2 of 3 words: F 0.8; one of one and one of two pairs: F 2/3; the longest common sequence: F 0.8.
    assert rouge("red car", "a red car") == pytest.approx((0.8 + 2 / 3 + 0.8) / 3)
    got = score_row(ROW, said("red car"), RewardPolicy(free_form="rouge"))
    assert got.accuracy == pytest.approx((0.8 + 2 / 3 + 0.8) / 3) and got.bonus == 0
    assert got.total == pytest.approx(got.accuracy + 1)
    assert score_row(ROW, said("a red car"), RewardPolicy(free_form="rouge")).total == 2.5
    lettered = {**ROW, "options": ["x", "y"], "solution": {"answer": "A", "clue": []}}
    assert score_row(lettered, said("B A"), RewardPolicy(free_form="rouge")).accuracy == 0


@given(st.text(max_size=40), st.text(max_size=40))
def test_rouge_lies_between_0_and_1(a, b):
    assert 0 <= rouge(a, b) <= 1


@pytest.mark.parametrize(
    ("given_", "truth", "same"),
    [("1,000", "1e3", 1), ("3.0", "3", 1), ("-2", "2", 0), ("12,34", "1234", 0), ("7" * 500, "7", 0), ("e5", "5", 0), ("3e-7", "1.2e-7", 0), ("0", "5e-7", 0), ("1.0000001", "1", 1), ("1e999", "1e999", 0)],
)  # fmt: skip
def test_plain_numbers_need_no_worker(monkeypatch, given_, truth, same):
    monkeypatch.setattr(Pool, "equal", lambda *_: False)
    assert numeric(given_, truth) == same


def test_formulas_and_a_worker_that_hangs():
    pool = Pool()
    try:
        assert pool.equal("\\frac{1}{2}", "0.5", 20.0)
        assert not pool.equal("\\frac{1}{3}", "0.5", 20.0)
        assert not pool.equal("<answer>", "0.5", 20.0)
        begin = time.monotonic()
        assert not pool.equal("9^{9^{9^{9}}}", "1", 0.5)
        assert pool.killed == 1 and time.monotonic() - begin < 10
    finally:
        pool.close()


def test_the_bonus_has_a_weight():
    policy = RewardPolicy(bonus_weight=0.0)
    got = score_row(ROW, said("a red car"), policy)
    assert (got.bonus, got.total) == (0.5, 2.0)


@pytest.mark.parametrize(
    "wrong", [{"free_form": "exact"}, {"time_limit": 0.0}, {"bonus_weight": float("nan")}]
)
def test_bad_policies(wrong):
    with pytest.raises(ValueError):
        RewardPolicy(**wrong)
