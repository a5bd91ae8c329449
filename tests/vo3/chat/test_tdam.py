"""TDAM policies against dense masks made by plain loops, on real Qwen token ids."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from conversations import observation, tool_turns, word_tokenizer

from vo3.chat import encode, visibility_from_ids
from vo3.chat.tdam import CLIP, OVERVIEW
from vo3.chat.tokens import Role
from vo3.trajectory import Turn

VISION_START, VISION_END, VIDEO_PAD = 151652, 151653, 151656


def dense(visibility):
    return np.asarray(visibility.dense(causal=True))


def spans(ids, assistant, opening, closing):
    """(first masked query, end) of every opening paired with the first later unused closing."""

    def places(sequence):
        return [
            i
            for i in range(len(ids) - len(sequence) + 1)
            if list(ids[i : i + len(sequence)]) == list(sequence)
            and all(assistant[i : i + len(sequence)])
        ]

    used, out = set(), []
    for start in places(opening):
        for end in places(closing):
            if end > start and end not in used:
                used.add(end)
                out.append((start + len(opening), end + len(closing) - 1))
                break
    return out


def released_reference(ids, assistant):
    """The released policy, written down as its description reads."""
    length = len(ids)
    mask = np.tril(np.ones((length, length), bool))
    videos, i = [], 0
    while i < length:
        if ids[i] == VISION_START and i + 1 < length and ids[i + 1] == VIDEO_PAD:
            end = i + 1
            while ids[end] != VISION_END:
                end += 1
            videos.append(range(i + 1, end))
            i = end
        i += 1
    if len(videos) < 2:
        return mask
    for start, end in spans(ids, assistant, (27, 9217), (522, 9217))[-1:]:
        for query in range(start, end):
            for key in videos[0]:
                mask[query, key] = False
    for start, end in spans(ids, assistant, (27, 1951, 287), (5361, 1951, 287))[1:]:
        for query in range(start, end):
            for video in videos[1:]:
                for key in video:
                    mask[query, key] = False
    return mask


def roles_reference(encoded, policy):
    """`predictor` and `turn`, token by token, from roles and turn offsets."""
    roles, offsets = encoded.roles.tolist(), encoded.turn_offsets.tolist()
    mask = np.tril(np.ones((len(roles), len(roles)), bool))
    turn = 0
    for query in range(len(roles)):
        while query >= offsets[turn + 1]:
            turn += 1
        if policy == "turn":
            said = [
                r for r in roles[offsets[turn] : offsets[turn + 1]] if r in (Role.CALL, Role.ANSWER)
            ]
            # the newline after <|im_end|> is no part of what the assistant says
            what = said[-1] if said and query < offsets[turn + 1] - 1 else None
        else:
            what = roles[query + 1] if query + 1 < len(roles) else None
        keys = roles[:query]
        for key, role in enumerate(keys):
            if what == Role.CALL and role == Role.CLIP:
                mask[query, key] = False
            if what == Role.ANSWER and role == Role.OVERVIEW and Role.CLIP in keys:
                mask[query, key] = False
    return mask


def show(encoded, tokenizer, rows):
    return [tokenizer.decode([int(i)]) for i in encoded.ids[rows]]


def hidden(visibility, bit):
    return np.flatnonzero(visibility.hide & bit)


def said(*texts, tokenizer, shown=2):
    """A conversation of `shown` videos, one before each of the assistant's first texts; (ids, assistant)."""
    turns = []
    for number, text in enumerate(texts):
        if number < shown:
            turns.append(Turn("observation", "<video> a", (observation(number, (1, 2, 4)),)))
        turns.append(Turn("text", text))
    encoded = encode(turns, tokenizer)
    return encoded.ids, (encoded.roles >= Role.TEXT) & (encoded.roles != Role.END), encoded


CALL = '<think>a</think>\n<grounding>{"temporal_segment": [1.0, 9.5], "sampling_strategy": "fine"}</grounding>'
# ]}</grounding is tokenised otherwise than "}</grounding
SWAPPED = '<grounding>{"sampling_strategy": "fine", "temporal_segment": [1.0, 9.5]}</grounding>'
ANSWER = "<think>b</think>\n<answer>A</answer>"


def test_the_released_policy_worked_by_hand(qwen_tokenizer):
    encoded = encode(tool_turns(2), qwen_tokenizer, policy="released")
    vis = encoded.visibility
    # <answer>A</answer> is < answer >A </ answer >: the queries are >A and </, and not the one that predicts >A
    assert show(encoded, qwen_tokenizer, hidden(vis, OVERVIEW)) == [">A", "</"]
    # of the two calls the second alone, without its last closing id
    assert "".join(show(encoded, qwen_tokenizer, hidden(vis, CLIP))) == (
        '>{"temporal_segment": [1.0, 5.0], "sampling_strategy": "fine"}</ground'
    )
    assert (hidden(vis, CLIP) > encoded.turn_offsets[4]).all()
    np.testing.assert_array_equal(vis.kind == OVERVIEW, encoded.roles == Role.OVERVIEW)
    np.testing.assert_array_equal(vis.kind == CLIP, encoded.roles == Role.CLIP)
    for i, row in enumerate(dense(vis)):
        lost = np.flatnonzero(~row[: i + 1])
        want = {OVERVIEW: Role.OVERVIEW, CLIP: Role.CLIP}.get(int(vis.hide[i]))
        keys = np.flatnonzero(encoded.roles[: i + 1] == want) if want else []
        np.testing.assert_array_equal(lost, keys)


TEXTS = [
    CALL,
    ANSWER,
    ANSWER.replace("A<", "yes.<"),  # .</answer is tokenised otherwise
    ANSWER.replace("A<", "A <"),
    ANSWER.replace("A<", "a long answer, in words<"),
    ANSWER.replace("<answer>A", "<answer>\nA\n"),
    ANSWER.replace("</answer>", ""),
    ANSWER.replace("<answer>", ""),
    ANSWER + ANSWER,
    SWAPPED,
    CALL.replace('"fine"}', "3}"),
    CALL.replace("}</", "}\n</"),
    CALL.replace("</grounding>", ""),
    CALL.replace("<grounding>", ""),
    CALL + CALL,
    CALL + "\n" + ANSWER,
    "<think>I write <answer> later and <grounding> now</think>" + CALL,
    "nothing",
    "<answer><grounding>{}</grounding></answer>",
    "< answer>A</answer >",
    " <answer>A</answer>",
]


@pytest.mark.parametrize("seed", range(150))
def test_released_equals_the_reference_on_random_conversations(qwen_tokenizer, seed):
    rng = np.random.default_rng(seed)
    texts = [TEXTS[i] for i in rng.integers(0, len(TEXTS), rng.integers(1, 7))]
    ids, assistant, encoded = said(
        *texts, tokenizer=qwen_tokenizer, shown=int(rng.integers(0, len(texts) + 1))
    )
    want = released_reference(ids, assistant)
    np.testing.assert_array_equal(dense(visibility_from_ids(ids, assistant, qwen_tokenizer)), want)
    again = encode_again(encoded, qwen_tokenizer)
    np.testing.assert_array_equal(dense(again), want)


def encode_again(encoded, tokenizer):
    """By roles known from encoding, in place of the assistant mask alone."""
    from vo3.chat import visibility_from_roles

    return visibility_from_roles(encoded.ids, encoded.roles, tokenizer, "released")


def test_the_random_conversations_mask_something(qwen_tokenizer):
    """So that the comparison above is about masks, not about causal triangles."""
    rows = []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        texts = [TEXTS[i] for i in rng.integers(0, len(TEXTS), rng.integers(1, 7))]
        ids, assistant, _ = said(
            *texts, tokenizer=qwen_tokenizer, shown=int(rng.integers(0, len(texts) + 1))
        )
        vis = visibility_from_ids(ids, assistant, qwen_tokenizer)
        rows.append((hidden(vis, OVERVIEW).size > 0, hidden(vis, CLIP).size > 0))
    assert (np.asarray(rows).sum(0) >= 20).all()


@pytest.mark.parametrize(
    ("texts", "masked"),
    [
        ([CALL, ANSWER], (2, 0)),
        ([CALL, ANSWER.replace("A<", "yes.<")], (0, 0)),  # the closing is not found
        ([CALL, ANSWER.replace("</answer>", "")], (0, 0)),
        ([CALL, SWAPPED, ANSWER], (2, 0)),
        ([ANSWER, ANSWER], (2, 0)),  # the last of two
        ([CALL, "nothing"], (0, 0)),
    ],
)
def test_what_released_finds(qwen_tokenizer, texts, masked):
    ids, assistant, _ = said(*texts, tokenizer=qwen_tokenizer)
    vis = visibility_from_ids(ids, assistant, qwen_tokenizer)
    assert (hidden(vis, OVERVIEW).size, hidden(vis, CLIP).size) == masked


def test_the_last_answer_alone(qwen_tokenizer):
    ids, assistant, encoded = said(ANSWER, ANSWER, tokenizer=qwen_tokenizer)
    rows = hidden(visibility_from_ids(ids, assistant, qwen_tokenizer), OVERVIEW)
    assert (rows > encoded.turn_offsets[3]).all()


def test_tags_that_are_not_the_assistants_are_not_searched(qwen_tokenizer):
    turns = tool_turns(1)
    turns.append(Turn("question", f"is it {ANSWER}? {CALL} {CALL}"))
    encoded = encode(turns, qwen_tokenizer, policy="released")
    rows = hidden(encoded.visibility, OVERVIEW)
    assert show(encoded, qwen_tokenizer, rows) == [">A", "</"]
    assert (rows < encoded.turn_offsets[5]).all()
    assert hidden(encoded.visibility, CLIP).size == 0


@pytest.mark.parametrize("policy", ["off", "released", "predictor", "turn"])
@pytest.mark.parametrize("calls", [0, 3])
def test_one_video_or_policy_off_is_causal(qwen_tokenizer, policy, calls):
    turns = tool_turns(calls) if policy == "off" else tool_turns(1, failed=True)
    vis = encode(turns, qwen_tokenizer, policy=policy).visibility
    assert not vis.hide.any() and not vis.kind.any()
    np.testing.assert_array_equal(dense(vis), np.tril(np.ones((vis.order.size,) * 2, bool)))


def test_an_image_is_no_video(qwen_tokenizer):
    shown = (observation(0), observation(1, (1, 4, 4), media="image"))
    turns = [Turn("question", "<video><image>", shown), *tool_turns(0)[2:]]
    for policy in ("released", "predictor", "turn"):
        encoded = encode(turns, qwen_tokenizer, policy=policy)
        assert not encoded.visibility.kind.any()
        again = visibility_from_ids(encoded.ids, encoded.roles >= Role.TEXT, qwen_tokenizer, policy)
        assert not again.kind.any()


def test_released_wants_the_vocabulary_it_was_written_for():
    for turns in (tool_turns(2), tool_turns(0)):
        with pytest.raises(NotImplementedError, match="Use 'predictor' or 'turn'"):
            encode(turns, word_tokenizer(), policy="released")


def test_predictor_on_qwen_tokens(qwen_tokenizer):
    encoded = encode(tool_turns(2), qwen_tokenizer, policy="predictor")
    assert show(encoded, qwen_tokenizer, hidden(encoded.visibility, OVERVIEW)) == ["answer"]
    rows = hidden(encoded.visibility, CLIP)
    text = "".join(show(encoded, qwen_tokenizer, rows))
    one = 'ing>{{"temporal_segment": [1.0, {}], "sampling_strategy": "fine"'
    # both calls hide the clips: the first has none before it
    assert text.startswith(one.format("4.0")) and text.endswith(one.format("5.0"))


def test_turn_on_qwen_tokens(qwen_tokenizer):
    encoded = encode(tool_turns(2), qwen_tokenizer, policy="turn")
    start, end = encoded.turn_offsets[6:8]
    np.testing.assert_array_equal(hidden(encoded.visibility, OVERVIEW), np.arange(start, end - 1))
    calls = [np.arange(encoded.turn_offsets[i], encoded.turn_offsets[i + 1] - 1) for i in (2, 4)]
    np.testing.assert_array_equal(hidden(encoded.visibility, CLIP), np.concatenate(calls))


@pytest.mark.parametrize("policy", ["predictor", "turn"])
@pytest.mark.parametrize("words", ["qwen", "words"])
@pytest.mark.parametrize("seed", range(10))
def test_predictor_and_turn_equal_the_reference(qwen_tokenizer, policy, words, seed):
    tokenizer = qwen_tokenizer if words == "qwen" else word_tokenizer()
    rng = np.random.default_rng(seed)
    turns = tool_turns(int(rng.integers(1, 4)), failed=bool(rng.integers(2)))
    extra = [TEXTS[i] for i in rng.integers(0, len(TEXTS), 2)]
    at = int(rng.integers(2, len(turns)))
    turns[at:at] = [Turn("text", extra[0])]
    turns.append(Turn("text", extra[1]))
    encoded = encode(turns, tokenizer, policy=policy)
    np.testing.assert_array_equal(dense(encoded.visibility), roles_reference(encoded, policy))
    # and the same from ids, with the assistant's content marked and nothing else
    content = (encoded.roles >= Role.TEXT) & (encoded.roles != Role.END)
    again = visibility_from_ids(encoded.ids, content, tokenizer, policy)
    np.testing.assert_array_equal(again.hide, encoded.visibility.hide)
    np.testing.assert_array_equal(again.kind, encoded.visibility.kind)


def test_the_assistant_mask_may_hold_the_framing(qwen_tokenizer):
    for policy in ("released", "predictor", "turn"):
        encoded = encode(tool_turns(2), qwen_tokenizer, policy=policy)
        framed = np.zeros(len(encoded), bool)
        for i in (2, 4, 6):
            framed[encoded.turn_offsets[i] : encoded.turn_offsets[i + 1] - 1] = True
        again = visibility_from_ids(encoded.ids, framed, qwen_tokenizer, policy)
        np.testing.assert_array_equal(again.hide, encoded.visibility.hide)


def test_an_answer_before_any_clip_sees_the_overview(qwen_tokenizer):
    first, *rest = tool_turns(0)[1:], *tool_turns(1)[2:]
    turns = [*first, *rest]
    for policy in ("predictor", "turn"):
        encoded = encode(turns, qwen_tokenizer, policy=policy)
        rows = hidden(encoded.visibility, OVERVIEW)
        assert rows.size and (rows >= encoded.turn_offsets[4]).all()


def test_the_mask_takes_a_few_bytes_a_token(qwen_tokenizer):
    encoded = encode(tool_turns(2), qwen_tokenizer, policy="released")
    fields = dataclasses.astuple(encoded.visibility)
    assert sum(f.nbytes for f in fields) <= 20 * len(encoded)
    assert all(f.dtype == np.int32 for f in fields)


@pytest.mark.usefixtures("unchecked_shapes")
def test_bad_arguments_are_refused(qwen_tokenizer):
    ids = np.arange(5)
    for assistant in (np.zeros(4, bool), np.zeros(5, int)):
        with pytest.raises(ValueError, match="assistant bool"):
            visibility_from_ids(ids, assistant, qwen_tokenizer)
    with pytest.raises(ValueError, match="unknown TDAM policy 'on'"):
        visibility_from_ids(ids, np.zeros(5, bool), qwen_tokenizer, "on")
