"""Questions, their truth, and the tokenizer that must hold every word of them."""

import collections
import dataclasses
import itertools
import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vo3.chat import PromptPack, encode, parse_turn
from vo3.clueworld import tasks, trajectories
from vo3.clueworld.data import DataConfig, make_stream
from vo3.clueworld.tokenizer import build_tokenizer
from vo3.clueworld.views import crop_policy
from vo3.clueworld.world import make_world
from vo3.rewards import score
from vo3.trajectory import Trajectory

PACK = PromptPack.load("clueworld")
TOKENIZER = build_tokenizer()


def example(seed: int, kind: str, options: bool) -> tuple:
    world, rng = make_world(seed), np.random.default_rng(seed)
    question = tasks.KINDS[kind](world, rng)
    task = tasks.make_task(world, question, video="w.mp4", task_id="t", rng=rng, options=options)
    return (
        world,
        question,
        trajectories.make_trajectory(world, question, task, pack=PACK, policy=crop_policy()),
    )


@given(st.integers(0, 2**40), st.sampled_from(list(tasks.KINDS)), st.booleans())
def test_ground_truth_is_sound(seed, kind, options):
    world, question, trajectory = example(seed, kind, options)
    assert Trajectory.loads(trajectory.dumps()) == trajectory
    for turn in trajectory.turns:
        if turn.role == "assistant":
            parsed = parse_turn(turn.text, world.duration)
            assert (parsed.kind, parsed.call, parsed.answer) == (turn.kind, turn.call, turn.answer)
    assert len(trajectory.calls) == len(question.looks)
    source = tasks.source_of(question)
    target = trajectory.task.target
    assert target.data_source == source
    if source == tasks.GROUNDING:
        assert trajectory.task.options is None
        assert json.loads(target.answer)["temporal_segment"] == [
            target.clues[0].start,
            target.clues[0].end,
        ]
        assert (
            score(trajectory, target).accuracy > 0.2
        )  # what the overview can tell of a card's time
    else:
        given_answer = trajectory.answer
        if options:
            assert 2 <= len(trajectory.task.options) <= 4
            given_answer = trajectory.task.options[given_answer]
        assert given_answer == question.answer
        assert score(trajectory, target).format == 1
    encoded = encode(trajectory.turns, TOKENIZER)
    assert (encoded.ids != TOKENIZER.unk_token_id).all()
    text = TOKENIZER.decode(encoded.ids[encoded.feature_index < 0])
    for turn in trajectory.turns:
        assert re.sub("<video>", "<|vision_start|><|vision_end|>", turn.text) in text


def test_answers_by_hand():
    world = make_world(3)  # orange 1, yellow 2, purple 0, white 2
    assert [(c.color, c.digit) for c in world.cards] == [
        ("orange", 1),
        ("yellow", 2),
        ("purple", 0),
        ("white", 2),
    ]
    cards = {card.color: card for card in world.cards}
    rng = np.random.default_rng(0)
    assert tasks.KINDS["count"](world, rng).answer == "4"
    assert tasks.KINDS["first"](world, rng).answer == "orange"
    assert tasks.KINDS["last"](world, rng).answer == "white"
    assert tasks.digit_question(cards["purple"]).answer == "0"
    ends = tasks.KINDS["ends"](world, rng)
    assert (ends.answer, [c.color for c in ends.looks]) == ("3", ["orange", "white"])
    total = tasks.added(cards["yellow"], cards["white"])
    assert (total.answer, total.said) == ("4", "the sum of 2 and 2 is")
    higher = tasks.compared(cards["orange"], cards["white"])
    assert (higher.answer, higher.choices) == ("white", ("orange",))
    assert higher.said == "1 orange 2 white higher 2"
    assert ends.found == ("first is orange", "last is white")
    for kind, text, answers in (
        (
            "next",
            r"after the (\w+) one",
            {"orange": "yellow", "yellow": "purple", "purple": "white"},
        ),
        ("after", r"after the (\w+) one", {"orange": "2", "yellow": "0", "purple": "2"}),
    ):
        found = {}
        for _ in range(40):
            question = tasks.KINDS[kind](world, rng)
            found[re.search(text, question.text)[1]] = question.answer
        assert found == answers


@given(st.integers(0, 2**40), st.sampled_from(list(tasks.KINDS)))
def test_a_world_with_one_card_can_be_asked_anything(seed, kind):
    """Training rows are cut to a few patches, which may show one card."""
    world, rng = make_world(seed), np.random.default_rng(seed)
    world = dataclasses.replace(world, cards=world.cards[:1])
    question = tasks.KINDS[kind](world, rng)
    assert set(question.looks) <= set(world.cards) and len(question.looks) <= 1
    assert question.answer not in question.choices


def test_the_quadrant_is_that_of_the_kind():
    world = make_world(3)
    for quadrant, kinds in tasks.QUADRANTS.items():
        for kind, make in kinds.items():
            question = make(world, np.random.default_rng(1))
            assert tasks.source_of(question) == quadrant, kind


@given(st.integers(0, 2**40), st.sampled_from(list(tasks.KINDS)), st.integers(1, 5))
def test_the_kind_is_what_is_asked_and_not_what_was_drawn(seed, drawn, cards):
    world, rng = make_world(seed), np.random.default_rng(seed)
    world = dataclasses.replace(world, cards=world.cards[:cards])
    question = tasks.KINDS[drawn](world, rng)
    assert question.kind in tasks.QUADRANTS[tasks.source_of(question)]
    total = sum(card.digit for card in question.looks)
    if question.kind in ("sum", "ends"):
        assert question.answer == str(total) and len(question.looks) == 2
    if question.kind == "higher":
        assert question.answer in [card.color for card in question.looks]
    if drawn == "ends":
        asked = len(world.cards) > 1 and world.cards[0].digit + world.cards[-1].digit <= 9
        assert (question.kind == "ends") == asked
    elif drawn != "sum" and len(world.cards) > 1 and drawn != "higher":
        assert question.kind == drawn


def test_a_text_that_is_no_question_has_no_kind():
    with pytest.raises(ValueError, match="'Who is there' is no question of ClueWorld"):
        tasks.kind_of("Who is there")


def test_words_outside_the_vocabulary_are_unknown_and_do_not_become_controls():
    ids = TOKENIZER("zebra <|im_end|>", split_special_tokens=True, add_special_tokens=False)
    assert TOKENIZER.convert_tokens_to_ids("<|im_end|>") not in ids["input_ids"]
    assert TOKENIZER.unk_token_id in ids["input_ids"]


def pieces(text: str) -> list[str]:
    return TOKENIZER.convert_ids_to_tokens(TOKENIZER(text)["input_ids"])


def test_an_option_is_one_token():
    assert pieces("A red\nB 3\nC yes\nD white") == [
        *("A red", "\n", "B 3", "\n", "C yes", "\n", "D white")
    ]
    assert pieces("A 34, Also") == ["A", " ", "34", ", ", TOKENIZER.unk_token]
    assert pieces("is red, A.") == ["is", " red", ", ", "A", "."]
    assert pieces("from 345 to 36") == ["from", " ", "34", "5", " to", " ", "36"]


def test_transcripts_say_what_is_there():
    stream = make_stream(
        DataConfig(worlds=12, patches=10, dense=True, transcripts=1, trajectories=False, length=128)
    )
    met = set()
    for ids in np.concatenate([stream.batch(step).ids for step in range(2)]):
        text = TOKENIZER.decode(ids)
        named = re.search(r"cards ([a-z ]+)\.", text)[1].split()
        assert re.findall(r"(\w+):\d+-\d+", text) == named
        follows = dict(itertools.pairwise(named))
        for kind, said, right in (
            ("first", r"first is (\w+)", lambda color, all=named: color == all[0]),
            ("last", r"last is (\w+)", lambda color, all=named: color == all[-1]),
            ("count", r"there are (\d)", lambda n, all=named: int(n) == len(all)),
            ("exists", r"(\w+): (yes|no)", lambda c, v, all=named: (c in all) == (v == "yes")),
            ("next", r"after (\w+) (\w+)", lambda a, b, then=follows: then[a] == b),
        ):
            for found in re.findall(said, text):
                assert right(*([found] if isinstance(found, str) else found))
                met.add(kind)
    assert met == set(tasks.OVERVIEW_KINDS)


@pytest.mark.parametrize("patches", [8, 32])
def test_a_batch_is_a_function_of_seed_and_step(patches):
    asked = (tasks.SINGLE_TOOL, tasks.MULTI_SEEN)
    config = DataConfig(worlds=2, patches=patches, length=560, asked=asked)
    one, two = make_stream(config).batch(5), make_stream(config).batch(5)
    other = make_stream(config).batch(6)
    for a, b in zip(vars(one).values(), vars(two).values(), strict=True):
        if isinstance(a, np.ndarray):
            np.testing.assert_array_equal(a, b)
    assert (one.overviews != other.overviews).any()
    shown = (one.feature_index >= 0).sum(1)
    assert (shown == 3 * 2 * patches + 36).all()  # three times the overview, and a clip, in a row
    assert one.feature_index.max() == 2 * 2 * patches + 2 * 36 - 1


def test_rows_that_are_too_short_are_refused():
    with pytest.raises(ValueError, match="raise the row length"):
        make_stream(DataConfig(worlds=1, length=128)).batch(0)


def test_a_row_asks_a_question_of_each_quadrant():
    """Clips of all questions stand in order; black ones fill up what a question on two cards did not look at."""
    config = DataConfig(worlds=2, length=1100, lookups=3, options_share=1.0)
    batch = make_stream(config).batch(0)
    assert batch.clips.shape == (6, 4, 84, 168, 3)
    for row, ids in enumerate(batch.ids):
        text = TOKENIZER.decode(ids[batch.visibility.enter[row] >= 0])
        assert text.count("<grounding>") in (2, 3)  # one card, and two
        assert int(batch.visibility.enter[row].max()) + 1 == 1 + 3 + 4
        clips = batch.feature_index[row][batch.feature_index[row] >= 2 * 64]
        assert len(np.unique(clips)) == len(clips) == 36 * text.count("<grounding>")


def test_rows_of_text_alone_show_nothing():
    config = DataConfig(worlds=2, length=500, transcripts=0, lookups=10, trajectories=False)
    batch = make_stream(config).batch(0)
    assert (batch.feature_index == -1).all() and not batch.clips.any()
    text = TOKENIZER.decode(batch.ids[0])
    for a, b, total in re.findall(r"sum of (\d) and (\d) is (\d)", text):
        assert int(a) + int(b) == int(total)
    compared = r"(\d) (\w+) (\d) (\w+) higher (\d) (\w+)"
    for a, p, b, q, digit, high in re.findall(compared, text):
        assert (digit, high) == max((a, p), (b, q))
    assert "sum of" in text and " higher " in text and "A " in text


def test_stated_rows_answer_from_what_stands_before():
    config = DataConfig(worlds=4, length=900, transcripts=0, lookups=12, trajectories=False, ordered=0.5, matched=0.0, stated="digits")  # fmt: skip
    batch = make_stream(config).batch(0)
    assert (batch.feature_index == -1).all()
    found = collections.Counter()
    for row in batch.ids:
        for example in TOKENIZER.decode(row).split("<|im_start|>user\n")[1:]:
            digits = dict(re.findall(r"the (\w+) card shows (\d)", example))
            for pair in re.findall(r"sum of (\d) and (\d) is", example):
                assert pair == tuple(digits.values()) or len(set(pair)) == len(digits) == 1
                found["sum"] += 1
            for a, p, b, q in re.findall(r"(\d) (\w+) (\d) (\w+) higher", example):
                assert (digits[p], digits[q]) == (a, b)
                found["higher"] += 1
            for listed, which, color in re.findall(r"cards (.+?)\. (first|last) is (\w+)", example):
                assert f"comes {which}?" in example
                assert color == listed.split()[0 if which == "first" else -1]
                found[which] += 1
    assert set(found) == {"sum", "higher", "first", "last"}
    # What an earlier turn would say carries no loss.
    text = lambda where: TOKENIZER.decode(batch.ids[where])
    assert "shows" in text(batch.weight == 0) and "shows" in text(batch.weight > 0)


def test_stated_turns_are_a_trajectory_without_its_videos():
    config = DataConfig(worlds=2, length=1000, transcripts=0, lookups=4, trajectories=False, matched=0.0, stated="turns", options_share=1.0)  # fmt: skip
    batch = make_stream(config).batch(0)
    assert (batch.feature_index == -1).all()
    for ids, weight in zip(batch.ids, batch.weight, strict=True):
        for example in TOKENIZER.decode(ids).split("<|im_start|>user\n")[1:]:
            options = dict(re.findall(r"^([A-D]) (\w+)$", example, re.M))
            said, letter, answer = re.search(r"(\w+), ([A-D])\.</think>\n<answer>(\w)<", example).groups()  # fmt: skip
            assert options[letter] == said and letter == answer
            assert "<grounding>" in example
        assert "<grounding>" not in TOKENIZER.decode(ids[weight > 0])


def test_stated_turns_of_open_questions_end_with_what_was_said():
    config = DataConfig(worlds=2, length=1000, transcripts=0, lookups=5, trajectories=False, matched=0.0, stated="turns", options_share=0.0, scale="micro")  # fmt: skip
    batch = make_stream(config).batch(0)
    said = []
    for row in batch.ids:
        for example in TOKENIZER.decode(row).split("<|im_start|>user\n")[1:]:
            word, answer = re.search(r"(\w+)\.</think>\n<answer>(\w+)<", example).groups()
            assert word == answer and "A " not in example
            said.append(answer)
    assert len(said) == 10 and len(set(said)) > 2


@pytest.mark.parametrize("view", ["agent", "middle"])
def test_letters_stand_in_sentences_behind_turns(view):
    config = DataConfig(worlds=2, length=1000, transcripts=0, lookups=5, trajectories=False, matched=1.0, stated="sentences", view=view)  # fmt: skip
    batch = make_stream(config).batch(0)
    for ids, weight in zip(batch.ids, batch.weight, strict=True):
        letters = []
        for example in TOKENIZER.decode(ids).split("<|im_start|>user\n")[1:]:
            options = dict(re.findall(r"^([A-D]) (\w+)$", example, re.M))
            said = re.findall(r"(\w+), ([A-D])\.", example.partition("assistant\n")[2])
            assert said and all(options[letter] == text for text, letter in said)
            letters += [letter for _, letter in said]
        assert TOKENIZER.decode(ids[weight > 0]).replace(" ", "") == "".join(letters)
