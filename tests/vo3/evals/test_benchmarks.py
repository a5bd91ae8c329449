"""Every benchmark's reader on a small fixture in the official format; what is not official is refused by name."""

from __future__ import annotations

import json

import eval_samples
import pytest

from vo3.evals.benchmarks import BENCHMARKS, Options
from vo3.evals.questions import AnnotationError
from vo3.trajectory import Clue

# Published numbers of questions behind the headline metric.
COUNTS = {
    "videomme": 2700, "mlvu": 2175, "lvbench": 1549, "longvideobench": 1337, "videommmu": 900, "mmvu": 625,
    "videoholmes": 1837, "charades": 3720, "clueworld": 0,
}  # fmt: skip


def load(name, tmp_path, **options):
    root = eval_samples.WRITERS[name](tmp_path / name)
    read = BENCHMARKS[name].load(root, Options(**options), partial=True)
    return {q.id: q for q in read.questions}, read


def test_the_published_counts():
    assert {b.name: b.counted for b in BENCHMARKS.values()} == COUNTS


def test_mlvu(tmp_path):
    questions, read = load("mlvu", tmp_path)
    assert len(questions) == 14
    first, second = questions["mlvu/plotQA-0000"], questions["mlvu/plotQA-0001"]
    assert first.task.options == {"A": "the ball", "B": "the cart", "C": "the door", "D": "the hat"}
    assert first.task.target.answer == "C"
    # Two candidates equal the answer: the official script ends up with the last.
    assert second.task.target.answer == "C"
    faulty = questions["mlvu/needle-0001"]
    assert faulty.task.target.answer not in faulty.task.options
    assert "none of the options" in faulty.note
    assert {q.categories["task"] for q in questions.values()} == {
        (t,)
        for t in ("plotQA", "needle", "ego", "count", "order", "anomaly_reco", "topic_reasoning")
    }
    assert [file.published for file in read.files] == [False] * 7
    more, _ = load("mlvu", tmp_path / "more", open_questions=True)
    assert {q.id for q in more.values() if not q.counted} == {
        "mlvu/sub_scene-0000",
        "mlvu/summary-0000",
    }


def test_videomme(tmp_path):
    questions, _ = load("videomme", tmp_path)
    question = questions["videomme/000-1"]
    assert question.task.options["B"] == "It snows."
    assert question.task.target.answer == "B"
    assert question.categories["duration"] == ("short",)
    assert question.categories["task"] == ("Counting Problem",)
    assert question.task.video.endswith("vid0.mp4")
    assert question.task.question == "What happens at 1?"
    spoken, _ = load("videomme", tmp_path / "spoken", subtitles=True)
    assert spoken["videomme/000-1"].task.question == (
        "This video's subtitles:\nHello there.\nIt is cold.\n\nWhat happens at 1?"
    )
    assert "No subtitles available." in spoken["videomme/001-0"].task.question


def test_lvbench(tmp_path):
    questions, _ = load("lvbench", tmp_path)
    first, second = questions["lvbench/55"], questions["lvbench/56"]
    assert (first.task.question, first.task.options["D"]) == ("What year is told?", "1633")
    assert second.task.question == "Why?\nAnd when?"
    assert second.task.options["C"] == "1363 or so"
    assert second.categories["question"] == ("reasoning", "event understanding")
    assert first.task.target.clues == (Clue(15.0, 79.0),)
    assert second.task.target.clues == (Clue(3615.0, 3660.0),)


def test_longvideobench(tmp_path):
    questions, _ = load("longvideobench", tmp_path, subtitles=True)
    first, second = questions["longvideobench/v0_0"], questions["longvideobench/v1_0"]
    assert (first.task.target.answer, second.task.target.answer) == ("A", "B")
    assert list(second.task.options) == list("ABCD")
    assert first.categories["duration"] == ("8 to 15 s",)
    assert first.task.question == "This video's subtitles:\nhi\n\nWhat is shown 0?"
    assert second.task.question == "This video's subtitles:\nwithin\n\nWhat is shown 1?"


def test_videommmu(tmp_path):
    questions, _ = load("videommmu", tmp_path)
    assert len(questions) == 4
    adapted = questions["videommmu/Adaptation/dev_Art_Theory_3"]
    assert adapted.task.question.startswith("Adaptation? the picture\nThe picture that")
    assert adapted.task.options["B"] == "two the picture"
    assert adapted.categories["discipline"] == ("Art and Design",)
    assert "Art/dev_Art_Theory_3.mp4" in adapted.task.video
    assert adapted.task.video == questions["videommmu/Perception/dev_Art_Theory_3"].task.video
    opened = questions["videommmu/Adaptation/test_Math_8"]
    assert (opened.kind, opened.task.options, opened.counted) == ("open", None, True)


def test_mmvu(tmp_path):
    questions, _ = load("mmvu", tmp_path)
    assert list(questions) == ["mmvu/validation_1"]
    question = questions["mmvu/validation_1"]
    assert question.task.target.answer == "E"
    assert question.categories == {"discipline": ("Engineering",), "subject": ("Computer Science",)}
    assert question.task.video.endswith("videos/Computer_Science/4.mp4")
    both, _ = load("mmvu", tmp_path / "both", open_questions=True)
    assert (both["mmvu/validation_0"].kind, both["mmvu/validation_0"].counted) == ("open", False)


def test_videoholmes(tmp_path):
    questions, _ = load("videoholmes", tmp_path)
    question = questions["videoholmes/Q1w2E3-2"]
    assert list(question.task.options) == list("ABCDEF")
    assert question.categories["question"] == ("CTI, core theme inference",)


def test_charades(tmp_path):
    questions, _ = load("charades", tmp_path)
    assert list(questions) == ["charades/0001", "charades/0002", "charades/0003"]
    question = questions["charades/0002"]
    assert question.task.target.clues == (Clue(10.0, 14.2),)
    assert question.task.target.data_source == "temporal_grounding"
    assert "is empty" in questions["charades/0003"].note


def test_a_video_is_found_by_any_suffix(tmp_path):
    root = eval_samples.videoholmes(tmp_path / "b")
    (root / "videos").mkdir()
    (root / "videos" / "Q1w2E3.webm").touch()
    read = BENCHMARKS["videoholmes"].load(root, partial=True)
    assert read.questions[0].task.video == str(root / "videos" / "Q1w2E3.webm")


@pytest.mark.parametrize("name", sorted(eval_samples.WRITERS))
def test_an_incomplete_benchmark_is_refused(name, tmp_path):
    root = eval_samples.WRITERS[name](tmp_path)
    with pytest.raises(AnnotationError, match=r"--config\.partial=True") as error:
        BENCHMARKS[name].load(root)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("name", sorted(eval_samples.WRITERS))
def test_a_missing_file_says_where_to_get_it(name, tmp_path):
    with pytest.raises(AnnotationError, match="download"):
        BENCHMARKS[name].load(tmp_path)


def _change(path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("name", "file", "change", "message"),
    [
        ("mlvu", "json/3_ego.json", lambda d: d[1].pop("candidates"), "row 1 has no field 'candidates'"),
        ("mlvu", "json/3_ego.json", lambda d: d[1].update(candidates=["x"]), "row 1: 1 options"),
        ("mmvu", "validation.json", lambda d: d[1].update(answer="F"), "'F' is none of the options A, B, C, D, E"),
        ("mmvu", "validation.json", lambda d: d[1].update(question=7), "question is 7, not str"),
        ("longvideobench", "lvb_val.json", lambda d: d[0].update(correct_choice=5), "correct_choice 5 of 5"),
        ("longvideobench", "lvb_val.json", lambda d: d[1].update(id="v0_0"), "two questions have the id"),
        ("videoholmes", "test_Video-Holmes.json", lambda d: d.append(3), "no JSON array of objects"),
        ("mmvu", "validation.json", lambda d: d[1].update(video="1.mp4"), "not as MMVU published it (ValueError: not enough values"),
        ("mmvu", "validation.json", lambda d: d[1]["choices"].update(A=4), "option A is 4, not text"),
        ("videoholmes", "test_Video-Holmes.json", lambda d: d.clear(), "holds no question"),
    ],
)  # fmt: skip
def test_wrong_annotations(name, file, change, message, tmp_path):
    root = eval_samples.WRITERS[name](tmp_path)
    _change(root / file, change)
    with pytest.raises(AnnotationError) as error:
        BENCHMARKS[name].load(root, partial=True)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "file", "text", "message"),
    [
        ("mmvu", "validation.json", "<html>", "is no JSON file"),
        ("charades", "charades_sta_test.txt", "AAAA1;0;3\n", "line 1: 'AAAA1;0;3' is not"),
        ("lvbench", "video_info.meta.jsonl", '{"key": "x", "qa": [{"uid": 1, "question": "no options"}]}\n', "no lines (A), (B)"),
        ("videomme", "videomme/test-00000-of-00001.parquet", "PAR?", "cannot be read"),
    ],
)  # fmt: skip
def test_broken_files(name, file, text, message, tmp_path):
    root = eval_samples.WRITERS[name](tmp_path)
    (root / file).write_text(text)
    with pytest.raises(AnnotationError) as error:
        BENCHMARKS[name].load(root, partial=True)
    assert message in str(error.value)
