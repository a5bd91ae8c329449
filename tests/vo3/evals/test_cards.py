"""Cards: all that made the number is on them, in three forms; two of them are compared; plots and tables over them."""

from __future__ import annotations

import copy
import dataclasses
import html.parser
import itertools
import json
import math

import eval_samples
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vo3.chat import PromptPack
from vo3.evals import card_page, card_text, cards, compare, plot, report
from vo3.evals.benchmarks import BENCHMARKS, Read
from vo3.evals.benchmarks.base import FoundFile
from vo3.evals.journal import failed
from vo3.evals.modes import prepare
from vo3.evals.questions import Question
from vo3.rollout.policy import RolloutPolicy
from vo3.video import CropPolicy

MODE = prepare("tools", crop=CropPolicy("eval"), rollout=RolloutPolicy(), pack=PromptPack.load())
SETTINGS = {
    "benchmark": "mlvu", "checkpoint": {"name": "<b>c</b>", "hash": "c0ffee"}, "annotations": {"a.json": "00"},
    "prompt_pack": {"name": "default", "hash": "abc"}, "mode": "tools", "crop_policy": {"overview_quota": 16384},
    "mrope_time": "constant",
}  # fmt: skip
ENVIRONMENT = {"packages": {"jax": "0.10.2"}, "decoder": "PyAV 18", "device": "1 x cpu (cpu)"}


def card(answers, *, benchmark="mlvu", **changes):
    questions = [
        Question(eval_samples.task(f"m/{i}"), "choice", {"task": (f"t{i % 2}",)}) for i in range(len(answers))
    ]  # fmt: skip
    trajectories = [
        failed(q.task, "video: missing", "<gone>")
        if a == "!"
        else eval_samples.answered(q.task, a, calls=i % 3)
        for i, (q, a) in enumerate(zip(questions, answers, strict=True))
    ]
    read = Read(tuple(questions), (FoundFile("json/1_plotQA.json", "ab" * 32, False),))
    made = cards.make(
        BENCHMARKS[benchmark], read, trajectories, mode=MODE, settings=SETTINGS, environment=ENVIRONMENT, partial=True
    )  # fmt: skip
    return made | changes


class Balanced(html.parser.HTMLParser):
    """Fails on a tag that is not closed; keeps the text."""

    def __init__(self, text):
        super().__init__()
        self.stack, self.words = [], []
        self.feed(text)
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img", "br", "hr"):
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_what_a_card_holds(tmp_path):
    made = card(["B", "B", "A", "x", None, "!"])
    assert made["score"]["metric"] == "M-Avg"
    assert made["score"]["value"] == pytest.approx(100 * (1 / 3 + 1 / 3) / 2)
    assert (made["unread"], made["failures"]["count"]) == (1, 1)
    assert made["outcomes"] == {"answered": 4, "refused": 1, "void": 1}
    assert made["published"]["models"]["Video-o3 (SFT+RL)"] == 72.1
    assert made["verdicts"]["m/0"] == [1.0, "B"]
    assert made["verdicts"]["m/5"] == [0.0, None]
    assert made["shown"]["overview_tokens"] == 32.0
    assert made["shown"]["clips"] == 0.8  # 0, 1, 2, 0, 1 looks; the last was never asked
    assert [s["name"] for s in made["other_scorers"]] == [
        "letter match (as the reward)",
        "lmms-eval extract_mcq_answer",
    ]
    cards.write(made, tmp_path)
    assert (
        cards.load(tmp_path) == cards.load(tmp_path / "card.json") == json.loads(json.dumps(made))
    )


def test_the_forms_tell_the_same_and_let_nothing_in(tmp_path):
    made = card(["B", "x", "!"])
    page = Balanced(card_page.page(made))
    words = " ".join(page.words)
    for text in (card_text.markdown(made), words):
        for told in (
            "M-Avg",
            "c0ffee",
            "72.1",
            "<b>c</b>",
            "constant",
            "0.10.2",
            "sha256 abab",
            "not as published",
            "<gone>",
            "1 answer could not be read",
        ):
            assert told in text, told
    assert "<gone>" not in card_page.page(made)
    assert "<b>c</b>" not in card_page.page(made)
    assert "http-equiv" in card_page.page(made)


def test_an_empty_metric_is_a_dash_and_not_nan():
    made = card([])
    assert made["score"]["value"] is None
    assert "\u2013" in card_text.markdown(made)
    Balanced(card_page.page(made))
    assert "NaN" not in json.dumps(made)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "no result card"), ("[]", "no result card"), ('{"schema": 99}', "schema 99")],
)
def test_what_is_no_card(text, message, tmp_path):
    (tmp_path / "card.json").write_text(text)
    with pytest.raises(cards.CardError, match=message):
        cards.load(tmp_path)
    with pytest.raises(cards.CardError, match="does not exist"):
        cards.load(tmp_path / "nowhere")


def test_a_comparison():
    first, second = card(["B", "B", "A", "A", "B"]), card(["B", "A", "B", "B", "B"])
    second = copy.deepcopy(second)
    second["settings"]["crop_policy"]["overview_quota"] = 4096
    found = compare.compare(first, second)
    assert (found.common, found.gained, found.lost) == (5, ("m/2", "m/3"), ("m/1",))
    assert found.p_value == 1.0
    assert [(d.name, d.first, d.second) for d in found.differences] == [
        ("settings.crop_policy.overview_quota", 16384, 4096)
    ]
    told = compare.text(found)
    assert "gains 2 and loses 1" in told
    assert "m/1: B, then A" in told
    words = " ".join(Balanced(compare.page(found)).words)
    assert "settings.crop_policy.overview_quota" in words


def test_a_comparison_names_the_videos_that_are_not_the_same_file():
    one, two = card(["B"]), card(["B"])
    one["videos"]["hashes"] = {f"v/{i}.mp4": "a" for i in range(14)} | {"only/here.mp4": "x"}
    two["videos"]["hashes"] = {f"v/{i}.mp4": "b" if i else "a" for i in range(14)}
    names = [d.name for d in compare.compare(one, two).differences if d.name.startswith("videos")]
    assert names == [*(f"videos.v/{i}.mp4" for i in range(1, 11)), "videos, further ones that differ"]  # fmt: skip
    # A card without the list, as older ones, is compared by the one hash.
    del one["videos"]["hashes"]
    assert compare.compare(one, two).differences == ()


def test_a_video_has_one_name_on_every_machine():
    assert cards.video_key("/data/mmvu/videos/Law/4.mp4") == "Law/4.mp4"
    assert cards.video_key(("/data/f/0001.jpg", "/data/f/0002.jpg")) == "f/0001.jpg"
    assert cards.video_key("a.mp4") == "a.mp4"


def test_cards_that_cannot_be_compared():
    one, other = card(["B"]), card(["B"], benchmark="videoholmes")
    with pytest.raises(cards.CardError, match="different benchmarks, mlvu and videoholmes"):
        compare.compare(one, other)
    with pytest.raises(cards.CardError, match="no question in common"):
        compare.compare(one, one | {"verdicts": {"other": [1.0, "A"]}})


def test_the_table_over_cards():
    made = [card(["B", "A"]), card(["B", "B"], mode="direct", quota=64)]
    lines = report.table(made).splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("| MLVU (part) | tools | M-Avg | 50.0 |")
    assert "| direct-64 |" in lines[3]
    assert "| 72.1 |" in lines[2]
    words = " ".join(Balanced(report.page(made)).words)
    assert "M-Avg against visual tokens a question" in words


def test_the_published_rows_stand_in_the_report(tmp_path):
    made = [
        card(["B", "A"], mode="direct", quota=64),
        card(["B", "B"]),
        card(["B", "B"], benchmark="videoholmes"),
    ]
    lines = report.published_table(made).splitlines()
    assert lines[0] == "| published, 7B | MLVU | Video-Holmes |"
    assert "| LongVT | - | - |" not in lines and "| Qwen2.5-VL | 70.2 | 34.7 |" in lines
    assert "| Video-MTR | 59.7 | - |" in lines and "| Video-o3 (SFT+RL) | 72.1 | 46.5 |" in lines
    # The agent's figure, not another mode's.
    assert lines[-1] == "| **this** | 100.0 (part) | 100.0 (part) |"
    for number, one in enumerate(made):
        cards.write(one, tmp_path / one["benchmark"]["name"] / str(number))
    old = tmp_path / "old" / "tools" / cards.JSON
    old.parent.mkdir(parents=True)
    old.write_text('{"schema": 0}')  # costs itself alone
    (problem,) = report.write(tmp_path)
    assert str(old) in problem and "left out of the table" in problem
    assert (tmp_path / report.MARKDOWN).read_text().endswith("\n".join(lines) + "\n")
    words = " ".join(Balanced((tmp_path / report.HTML).read_text()).words)
    assert "Published figures 7B models;" in words and "Video-MTR 59.7" in words
    # On each card too, and how the model called its tool.
    for text in (
        card_text.markdown(made[1]),
        " ".join(Balanced(card_page.page(made[1])).words),
    ):
        assert "Video-o3 (SFT+RL)" in text and "dialect" in text and "video-o3" in text


@given(st.floats(1, 1e6), st.floats(1.3, 1e4))
def test_ticks_lie_inside_and_are_few(low, ratio):
    found = plot.ticks(low, low * ratio)
    assert 2 <= len(found) <= 6
    assert all(low * 0.99 <= t <= low * ratio * 1.01 for t in found)
    assert found == sorted(found)


@given(st.lists(st.floats(0, 300), max_size=5))
def test_names_do_not_cover_each_other(heights):
    placed = plot.spread(sorted(heights))
    assert all(b - a >= 15 - 1e-6 for a, b in itertools.pairwise(placed))


def test_a_plot_of_one_point_and_of_equal_costs():
    point = plot.Point(100.0, 50.0, 40.0, 60.0)
    for points in ([point], [point, dataclasses.replace(point, value=55.0)]):
        drawn = plot.draw({"tools": points}, label="tokens", unit="")
        assert "nan" not in drawn
        assert drawn.count("<circle") == len(points)
        assert math.isfinite(float(drawn.split('cx="')[1].split('"')[0]))
