"""Adapters, each on a tiny file in the format its publisher documents."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from data_prep import admission
from data_prep.schema import Material, Triplet
from data_prep.sources import clueworld, files
from data_prep.sources.files import READERS, SourceError, split_options
from vo3.clueworld.world import make_world
from vo3.trajectory import Clue

FIXTURES = pathlib.Path(__file__).parent / "fixtures"


def read(name: str, file: str, **options) -> list:
    return list(READERS[name](str(FIXTURES / file), **options))


def test_charades_sta():
    first, second = read("charades-sta", "charades_sta.txt")  # the empty interval has no moment
    assert first.kind == "grounding" and first.video == "AB12C.mp4"
    assert first.question == "a person opens the cupboard" and first.clues == (Clue(3.5, 10.0),)
    assert second.id != first.id


@pytest.mark.parametrize("place", ["", "val.csv"])
def test_next_gqa(place):
    one, two = read("next-gqa", place)
    assert one.video == "1164/4010069381.mp4" and two.video == "4010069382.mp4"
    assert one.question == "how do the two people play the tool?"
    assert one.answer == "B" and one.options["B"] == "tap them" and len(one.options) == 5
    assert one.clues == (Clue(1.2, 5.8),) and len(two.clues) == 2


def test_cg_bench():
    (row,) = read("cg-bench", "cg_bench.json")
    assert row.video == "1.mp4" and row.answer == "C" and row.options["C"] == "white"
    assert row.clues == (Clue(101.5, 110.0), Clue(130.0, 140.0))


def test_llava_video_gives_a_triplet_for_each_pair_of_turns():
    choice, free = read("llava-video", "llava_video.json")
    assert choice.video == "2_3_m_academic/folder/v_7.mp4" and choice.id == "v_7-0"
    assert choice.question == "What does the man hold?" and choice.answer == "B"
    assert choice.options == {"A": "a cup.", "B": "a book.", "C": "a phone.", "D": "a pen."}
    assert free.options is None and free.answer == "He stands in a kitchen."


def test_longvideo_reason():
    choice, free = read("longvideo-reason", "longvideo_reason.jsonl")
    assert choice.answer == "A" and choice.options["D"] == "rain"
    assert free.answer == "The anthem begins." and free.video == "longvila_videos/a2.mp4"


def test_longvt_as_json_lines_and_as_parquet(tmp_path):
    van, dogs = read("longvt", "longvt.jsonl")
    assert van.question == "What is written on the van?" and van.answer == "Fresh Bread"
    assert van.video == "/videos/van.mp4" and van.clues == (Clue(296.3, 320.8),) and van.id == "5"
    assert dogs.clues == (Clue(65.0, 80.0),)
    lines = (FIXTURES / "longvt.jsonl").read_text().splitlines()[:1]
    flat = [{k: json.dumps(v) for k, v in json.loads(line).items()} for line in lines]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(flat), tmp_path / "rows.parquet")
    assert list(READERS["longvt"](str(tmp_path / "rows.parquet"))) == [van]


def test_own_triplets_and_material_round_trip(tmp_path):
    made = list(clueworld.triplets(limit=4))
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(t.to_json()) + "\n" for t in made))
    assert list(files.triplets(str(path))) == made
    path.write_text('{"id": "a", "video": "a.mp4", "question": "What?", "answer": "B", "options": {"A": "x", "B": "y"}}\n')  # fmt: skip
    (own,) = files.triplets(str(path))
    assert (own.answer, own.kind, own.clues) == ("B", "qa", ())
    path.write_text(
        '{"id": "m", "video": "a.mp4", "captions": [{"timestamp": ["0:05", 9], "text": "x"}]}\n'
    )
    (item,) = files.material(str(path))
    assert (
        isinstance(item, Material) and item.captions[0].start == 5.0 and item.captions[0].end == 9.0
    )


def test_half_a_surrogate_pair_becomes_a_question_mark(tmp_path):
    path = tmp_path / "t.jsonl"
    made = {"id": "a", "video": "a.mp4", "question": "What \ud83d?", "answer": "B", "options": {"A": "x", "B": "y\udc00"}}  # fmt: skip
    path.write_text(json.dumps(made) + "\n")
    (own,) = files.triplets(str(path))
    assert own.question == "What ??" and own.options["B"] == "y?"
    flat = {**made, "options": json.dumps(made["options"]), "question": "What?"}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([flat]), tmp_path / "t.parquet")
    (again,) = files._rows(str(tmp_path / "t.parquet"))
    assert files._nested(again[1]["options"])["B"] == "y?"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("charades-sta", "AB12C 3.5##no end."),
        ("cg-bench", '[{"video_uid": "1", "qid": 0}]'),
        ("llava-video", '[{"id": "1", "video": "a.mp4"}]'),
        ("longvideo-reason", '[{"problem": "q", "answer": "a"}]'),
        ("longvt", '[{"video": "a.mp4", "answer": "x"}]'),
        ("triplets", '[{"schema_version": 99}]'),
        ("material", '[{"id": "1", "video": "a.mp4", "captions": [{"timestamp": ["x", 2], "text": "y"}]}]'),
    ],
)  # fmt: skip
def test_a_misread_format_is_an_error_that_names_file_and_row(tmp_path, name, text):
    path = tmp_path / ("f.txt" if name == "charades-sta" else "f.json")
    path.write_text(text)
    with pytest.raises(SourceError, match=path.name):
        list(READERS[name](str(path)))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cg-bench", '[{"video_uid": "1", "qid": 0, "question": "q", "choices": ["a", "b"], "right_answer": "E"}]'),
        ("llava-video", '[{"id": "1", "video": "a.mp4", "conversations": [{"from": "human", "value": "q\\nA. x\\nB. y"}, {"from": "gpt", "value": "neither"}]}]'),
        ("longvideo-reason", '[{"videos": "a.mp4", "problem": "q\\nA. x\\nB. y", "answer": "neither"}]'),
    ],
)  # fmt: skip
def test_a_row_whose_answer_is_no_option_costs_that_row(tmp_path, name, text):
    (tmp_path / "f.json").write_text(text)
    (row,) = READERS[name](str(tmp_path / "f.json"))
    (refused,) = admission.admit([row], settings=admission.AdmissionSettings(), root="")
    assert refused[1] == "malformed" and "none of the options" in refused[2]


def test_next_gqa_with_an_option_twice(tmp_path):
    """As one published row of the test split has it."""
    head, *_ = (FIXTURES / "val.csv").read_text().splitlines()
    (tmp_path / "test.csv").write_text(f"{head}\n1,9,64,48,how is the baby,happy,4,TC,sad,glad,calm,happy,happy\n")  # fmt: skip
    (row,) = READERS["next-gqa"](str(tmp_path), split="test")
    assert row.answer == "D" and list(row.options) == list("ABCD")


@pytest.mark.parametrize("name", sorted(READERS))
def test_a_missing_file_is_said(name, tmp_path):
    with pytest.raises((SourceError, OSError), match="nowhere"):
        list(READERS[name](str(tmp_path / "nowhere.json")))


def test_options_inside_a_question():
    assert split_options("Why?\nA. x\nB. y\nAnswer with the letter.") == (
        "Why?",
        {"A": "x", "B": "y"},
    )
    assert split_options("Why?\nOptions:\n(A) x\n(B) y") == ("Why?", {"A": "x", "B": "y"})
    assert split_options("Plain?") == ("Plain?", None)
    events = "Events:\nA. rain\nB. sun\nWhich order?"
    assert split_options(f"{events}\nA. AB\nB. BA") == (events, {"A": "AB", "B": "BA"})
    ten = {letter: letter.lower() for letter in "ABCDEFGHIJ"}
    lines = "\n".join(f"{letter}. {text}" for letter, text in ten.items())
    assert split_options(f"Which?\n{lines}\nA. only") == ("Which?", ten)


def test_clueworld_triplets_follow_from_their_ids():
    again = list(clueworld.triplets(limit=12))
    assert again == list(clueworld.triplets(limit=12)) and len({t.id for t in again}) == 12
    spoiled = list(clueworld.triplets(limit=12, wrong_answers=1.0))
    assert all(a.answer != b.answer or a.clues != b.clues for a, b in zip(again, spoiled))
    assert all(isinstance(t, Triplet) for t in again)
    short = list(clueworld.triplets(limit=8, longest=400))
    assert len(short) == 8 and max(t.info.duration for t in short) <= 400
    with pytest.raises(ValueError, match="hardly a shorter"):
        list(clueworld.triplets(limit=1, longest=60))
    with pytest.raises(ValueError, match="unknown kinds"):
        list(clueworld.triplets(limit=1, kinds=("nope",)))
    with pytest.raises(ValueError, match="no id"):
        clueworld.case("x-digit")


@pytest.mark.parametrize(
    ("digits", "asked"),
    [((1, 9, 9, 9), {"1 9"}), ((7, 7, 9, 9), {"7 9"}), ((7, 7, 7, 7), {"7"})],
)
def test_two_cards_of_the_synthetic_world_are_compared_only_where_they_differ(digits, asked):
    world = make_world(3)
    cards = [dataclasses.replace(c, digit=d) for c, d in zip(world.cards, digits, strict=True)]
    world = dataclasses.replace(world, cards=tuple(cards))
    for seed in range(20):
        question = clueworld._pair(world, np.random.default_rng(seed))
        assert " ".join(sorted(str(c.digit) for c in question.looks)) in asked
