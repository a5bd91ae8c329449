"""Verdicts and metrics, against numbers worked out by hand."""

from __future__ import annotations

import dataclasses

import eval_samples
import pytest

from vo3.evals import scoring
from vo3.evals.benchmarks import BENCHMARKS
from vo3.evals.extraction import LETTER, Scorer, plain_letter
from vo3.evals.journal import failed
from vo3.evals.questions import Question
from vo3.trajectory import Clue, Target, Task

MLVU, CHARADES, HOLMES = (BENCHMARKS[n] for n in ("mlvu", "charades", "videoholmes"))


def choice(name="t/1", *, answer="B", **categories) -> Question:
    return Question(eval_samples.task(name, answer=answer), "choice", categories)


def grade(question, answer, judge=None, scorer=LETTER):
    return scoring.grade(question, eval_samples.answered(question.task, answer), scorer, judge)


def test_a_letter():
    assert grade(choice(), "B").right == 1.0
    assert grade(choice(), "B. a dog").given == "B"
    wrong = grade(choice(), "A")
    assert (wrong.right, wrong.given, wrong.how) == (0.0, "A", "rule")
    unread = grade(choice(), "the dog")
    assert (unread.right, unread.given, unread.how) == (0.0, None, "rule")


def test_no_answer_and_no_question_are_wrong():
    assert grade(choice(), None).how == "none"
    lost = failed(choice().task, "video: missing", "gone")
    verdict = scoring.grade(choice(), lost, LETTER)
    assert (verdict.right, verdict.how) == (0.0, "failed")


def test_a_letter_outside_of_the_options_is_never_right():
    scorer = Scorer("any", "1", lambda text, letters, texts: "C")
    assert grade(choice(), "C", scorer=scorer).right == 0.0


def test_the_judge_is_asked_only_where_the_rule_finds_nothing():
    asked = []

    def judge(question, answer):
        asked.append(answer)
        return True

    assert grade(choice(), "A", judge).right == 0.0
    assert grade(choice(), "the dog", judge).how == "judge"
    assert asked == ["the dog"]


def test_words_without_a_rule_are_left_to_a_judge():
    question = Question(Task("t/2", "a.mp4", "Describe.", None, Target("a ball")), "open")
    assert grade(question, "a ball").how == "unjudged"
    assert grade(question, "a ball", lambda q, a: False).how == "judge"
    by_rule = Scorer("same", "1", plain_letter, open=lambda text, true: text == true)
    assert grade(question, "a ball", scorer=by_rule).right == 1.0


@pytest.mark.parametrize(
    ("answer", "iou", "given"),
    [
        ('{"temporal_segment": [10, 15]}', 1.0, "10 - 15"),
        ('{"temporal_segment": [15, 10]}', 1.0, "10 - 15"),  # the ends are sorted
        ('{"temporal_segment": [12.5, 17.5]}', 2.5 / 7.5, "12.5 - 17.5"),
        ('{"temporal_segment": [15, 20]}', 0.0, "15 - 20"),
        ("from 10 to 15", 0.0, None),
        ('{"temporal_segment": [10]}', 0.0, None),
        ('{"temporal_segment": [1e999, 3]}', 0.0, None),
        ('{"temporal_segment": [NaN, 3]}', 0.0, None),
        ('{"temporal_segment": ["10", 15]}', 0.0, None),
    ],
)
def test_a_time_window(answer, iou, given):
    target = Target("", (Clue(10.0, 15.0),), "temporal_grounding")
    question = Question(Task("c/1", "a.mp4", "it rains", None, target), "segment")
    verdict = grade(question, answer)
    assert (verdict.right, verdict.given) == (pytest.approx(iou), given)


def test_m_avg_is_the_mean_over_tasks():
    questions = [choice(f"m/{i}", task=("big",)) for i in range(8)] + [
        choice("m/8", task=("small",))
    ]
    verdicts = [grade(q, "A") for q in questions[:6]] + [grade(q, "B") for q in questions[6:]]
    score = scoring.summarise(MLVU, verdicts)
    assert score.headline.value == pytest.approx((2 / 8 + 1) / 2 * 100)
    assert {row.group: row.figure.value for row in score.rows} == {"big": 25.0, "small": 100.0}
    # The same answers where every question counts the same.
    assert scoring.summarise(HOLMES, verdicts).headline.value == pytest.approx(100 / 3)


def test_a_question_in_two_groups_counts_in_both_and_once_in_all():
    verdicts = [grade(choice("m/1", kind=("x", "y")), "B"), grade(choice("m/2", kind=("y",)), "A")]
    score = scoring.summarise(HOLMES, verdicts)
    assert (score.headline.right, score.headline.total) == (1, 2)
    assert {row.group: (row.figure.right, row.figure.total) for row in score.rows} == {
        "x": (1, 1),
        "y": (1, 2),
    }


def test_what_is_apart_moves_nothing():
    inside = grade(choice("m/1"), "B")
    outside = grade(dataclasses.replace(choice("m/2", open=("z",)), counted=False), "A")
    score = scoring.summarise(HOLMES, [inside, outside])
    assert (score.headline.right, score.headline.total) == (1, 1)
    assert [(r.group, r.figure.total) for r in score.apart] == [("z", 1)]


def test_failures_and_unread_answers_stay_in_the_count():
    question = choice("m/3")
    verdicts = [
        grade(choice("m/1"), "B"),
        grade(choice("m/2"), "the dog"),
        scoring.grade(question, failed(question.task, "video: missing", "x"), LETTER),
    ]
    score = scoring.summarise(HOLMES, verdicts)
    assert (score.headline.right, score.headline.total, score.unread) == (1, 3, 1)


def test_charades_counts_recall_over_all_and_miou_over_parsed():
    target = Target("", (Clue(0.0, 10.0),), "temporal_grounding")
    answers = [
        '{"temporal_segment": [0, 10]}',
        '{"temporal_segment": [0, 4]}',
        "no idea",
        '{"temporal_segment": [20, 30]}',
    ]
    verdicts = [
        grade(Question(Task(f"c/{i}", "a.mp4", "it", None, target), "segment"), a)
        for i, a in enumerate(answers)
    ]
    score = scoring.summarise(CHARADES, verdicts)
    found = {row.group: row.figure.value for row in score.rows}
    assert found == {
        "R@0.3": 50.0, "R@0.5": 25.0, "R@0.7": 25.0,
        "mIoU of answered": pytest.approx(100 * 1.4 / 3), "mIoU of all": pytest.approx(35.0),
    }  # fmt: skip
    assert score.headline.value == 25.0
