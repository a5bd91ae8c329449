"""Text as it comes, and tags across token borders."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollout_fakes import byte_tokenizer

from vo3.rollout.stops import StopWatch, TextStream, decode

BYTES = byte_tokenizer()
TAGS = ("</grounding>", "</answer>")


def watch(tokenizer, limit=1000, tags=TAGS, ends=()):
    return StopWatch(tokenizer, tags=tags, ends=ends, limit=limit)


def feed(watcher, ids):
    for number, token in enumerate(ids):
        _, stop = watcher.push(token)
        if stop is not None:
            return number + 1, stop
    return None


@given(st.text(max_size=40))
def test_streamed_pieces_make_the_whole_text(text):
    ids = BYTES(text, add_special_tokens=False)["input_ids"]
    stream = TextStream(BYTES)
    pieces = [stream.push(i) for i in ids]
    pieces.append(stream.finish())
    assert "".join(pieces) == stream.text == decode(ids, BYTES) == text


@given(st.lists(st.integers(0, 255), max_size=30))
def test_broken_characters_lose_no_text_that_follows(ids):
    """Any bytes at all: nothing raises, and a tag after them is found."""
    tail = BYTES("x</answer>", add_special_tokens=False)["input_ids"]
    stop = feed(watch(BYTES), [*ids, *tail])
    assert stop is not None and stop[1] == "tag" and stop[0] <= len(ids) + len(tail)


def test_one_character_of_four_tokens():
    stream = TextStream(BYTES)
    ids = BYTES("a🎬b", add_special_tokens=False)["input_ids"]
    assert [stream.push(i) for i in ids] == ["a", "", "", "", "🎬", "b"]


@given(st.text(alphabet="ab<>/answer grounding\n", max_size=30), st.sampled_from(TAGS))
def test_a_tag_stops_at_its_last_token(before, tag):
    ids = BYTES(before + tag + " and more", add_special_tokens=False)["input_ids"]
    first = min((before + tag).find(t) + len(t) for t in TAGS if t in before + tag)
    assert feed(watch(BYTES), ids) == (first, "tag")


def test_tags_across_the_real_tokenizers_borders(qwen_tokenizer):
    """`</answer>` is two or three tokens there, and its last may carry what follows; ids are kept whole."""
    for text in (
        "<answer>A</answer>",
        "<answer>the cat.</answer>",
        '"fine"}</grounding>',
        "x]}</grounding>",
        "</answer>\n\n",
    ):
        ids = qwen_tokenizer(text, add_special_tokens=False)["input_ids"]
        count, stop = feed(watch(qwen_tokenizer), ids)
        assert stop == "tag"
        said = decode(ids[:count], qwen_tokenizer)
        assert any(tag in said for tag in TAGS)
        assert not any(tag in decode(ids[: count - 1], qwen_tokenizer) for tag in TAGS)


def test_the_end_token_stops():
    end = BYTES.eos_token_id
    ids = [*BYTES("ab", add_special_tokens=False)["input_ids"], end]
    watcher = watch(BYTES, ends=(end,))
    assert feed(watcher, ids) == (3, "end") and watcher.stream.text == "ab"


def test_the_limit_stops_and_shows_what_was_waiting():
    ids = BYTES("🎬", add_special_tokens=False)["input_ids"]
    watcher = watch(BYTES, limit=3)
    assert feed(watcher, ids) == (3, "length")
    assert watcher.stream.text == decode(ids[:3], BYTES)


def test_a_tag_wins_over_the_limit():
    ids = BYTES("</answer>", add_special_tokens=False)["input_ids"]
    assert feed(watch(BYTES, limit=len(ids)), ids) == (len(ids), "tag")


@pytest.mark.parametrize("text", ["</ grounding>", "<answer>", "</Answer>", "< /answer>"])
def test_what_is_no_tag(text):
    assert feed(watch(BYTES), BYTES(text, add_special_tokens=False)["input_ids"]) is None


def test_the_text_does_not_cost_more_as_it_grows():
    """Every id is decoded with a handful before it, however long the turn is."""

    class Counting:
        most = 0

        def decode(self, ids, **options):
            self.most = max(self.most, len(ids))
            return BYTES.decode(ids, **options)

    counting = Counting()
    watcher = watch(counting, limit=5000)
    feed(watcher, BYTES("words é " * 300, add_special_tokens=False)["input_ids"])
    assert counting.most <= 8
