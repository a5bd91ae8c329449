"""Encoding: ids against the reference template, loss, roles, positions, features, continuation, injection."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from conversations import SPECIALS, observation, random_turns, tool_turns, word_tokenizer

from vo3.chat import (
    Role,
    Specials,
    State,
    assistant_header,
    assistant_tail,
    encode,
    encode_turn,
    mrope_positions,
)
from vo3.chat.tokens import locate
from vo3.clueworld.tokenizer import build_tokenizer
from vo3.trajectory import Turn

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


@pytest.fixture(params=["qwen", "words"])
def tokenizer(request):
    return (
        request.getfixturevalue("qwen_tokenizer") if request.param == "qwen" else word_tokenizer()
    )


def with_pads(turn: Turn) -> str:
    """The turn's text as the reference processor writes it before tokenising."""
    text = turn.text
    for o in turn.observations:
        mark, pad = (
            ("<video>", "<|video_pad|>") if o.media == "video" else ("<image>", "<|image_pad|>")
        )
        text = text.replace(mark, f"<|vision_start|>{pad * o.tokens}<|vision_end|>", 1)
    return text


def reference_ids(turns, tokenizer):
    messages = [{"role": t.role, "content": with_pads(t)} for t in turns]
    out = tokenizer.apply_chat_template(messages, chat_template=CHATML, tokenize=True)
    return list(out["input_ids"] if hasattr(out, "keys") else out)


def words(encoded, role, tokenizer):
    return tokenizer.decode(encoded.ids[encoded.roles == role])


def said(turn: Turn, tokenizer, *, end: bool) -> Turn:
    """The turn as if it had been sampled."""
    ids = tokenizer(turn.text, add_special_tokens=False)["input_ids"]
    ids += [Specials.of(tokenizer).im_end] * end
    return dataclasses.replace(turn, ids=tuple(ids), stop="end" if end else "tag")


def assert_same(a, b):
    for field in ("ids", "loss_mask", "roles", "positions", "feature_index"):
        np.testing.assert_array_equal(getattr(a, field), getattr(b, field), err_msg=field)
        assert getattr(a, field).dtype == getattr(b, field).dtype
    assert (a.grids, a.second_per_grid, a.state) == (b.grids, b.second_per_grid, b.state)


def joined(parts):
    whole = {
        field: np.concatenate([getattr(p, field) for p in parts], axis=-1)
        for field in ("ids", "loss_mask", "roles", "positions", "feature_index")
    }
    grids = tuple(g for p in parts for g in p.grids)
    seconds = tuple(s for p in parts for s in p.second_per_grid)
    return dataclasses.replace(parts[-1], grids=grids, second_per_grid=seconds, **whole)


@pytest.mark.parametrize("seed", range(12))
def test_ids_equal_the_reference_template(tokenizer, seed):
    turns = random_turns(np.random.default_rng(seed))
    assert encode(turns, tokenizer).ids.tolist() == reference_ids(turns, tokenizer)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("mrope_time", ["constant", "exact"])
def test_one_turn_at_a_time_equals_the_whole(tokenizer, seed, mrope_time):
    turns = random_turns(np.random.default_rng(seed))
    whole = encode(turns, tokenizer, mrope_time=mrope_time)
    parts, state = [], State()
    for turn in turns:
        parts.append(encode_turn(turn, tokenizer, after=state, mrope_time=mrope_time))
        state = parts[-1].state
    assert_same(joined(parts), whole)
    np.testing.assert_array_equal(
        np.concatenate([p.visibility.order for p in parts]), np.arange(len(whole))
    )


def test_header_sampled_ids_and_tail_equal_the_encoded_turn(tokenizer):
    for turn, end in ((tool_turns()[2], False), (tool_turns()[-1], True)):
        turn = said(turn, tokenizer, end=end)
        parts = [
            assistant_header(tokenizer),
            np.asarray(turn.ids, np.int32),
            assistant_tail(turn.ids, tokenizer),
        ]
        np.testing.assert_array_equal(np.concatenate(parts), encode_turn(turn, tokenizer).ids)
    assert assistant_tail([], tokenizer)[0] == Specials.of(tokenizer).im_end


def test_positions_equal_those_of_the_ids(tokenizer):
    encoded = encode(tool_turns(3), tokenizer, mrope_time="exact")
    specials = Specials.of(tokenizer)
    np.testing.assert_array_equal(
        encoded.positions,
        mrope_positions(
            encoded.ids,
            encoded.grids,
            image_token_id=specials.image_pad,
            video_token_id=specials.video_pad,
            vision_start_token_id=specials.vision_start,
            mrope_time="exact",
            second_per_grid=encoded.second_per_grid,
        ),
    )
    assert encoded.second_per_grid == (1.0, *[2 / 1.5] * 3)
    assert encoded.state.position == encoded.positions.max() + 1


def test_features_stand_at_the_pads_in_order(tokenizer):
    turns = [
        Turn(
            "question",
            "<video> a <image>",
            (observation(0), observation(1, (1, 4, 4), media="image")),
        ),
        Turn("observation", "<video>", (observation(2, (1, 2, 4)),)),
    ]
    encoded = encode(turns, tokenizer)
    at = encoded.feature_index >= 0
    specials = Specials.of(tokenizer)
    np.testing.assert_array_equal(encoded.feature_index[at], np.arange(8 + 4 + 2))
    np.testing.assert_array_equal(
        at, np.isin(encoded.ids, [specials.video_pad, specials.image_pad])
    )
    assert encoded.roles[at].tolist() == [Role.OVERVIEW] * 8 + [Role.IMAGE] * 4 + [Role.CLIP] * 2
    assert encoded.grids == ((2, 4, 4), (1, 4, 4), (1, 2, 4))
    assert encoded.second_per_grid == (1.0, 0.0, 1.0)
    assert encoded.state == State(
        length=len(encoded), position=encoded.state.position, features=14, videos=2
    )


def test_turn_offsets_frame_the_turns(tokenizer):
    turns = tool_turns()
    encoded = encode(turns, tokenizer)
    assert len(encoded.turn_offsets) == len(turns) + 1
    for i, turn in enumerate(turns):
        part = encoded.ids[encoded.turn_offsets[i] : encoded.turn_offsets[i + 1]]
        np.testing.assert_array_equal(part, encode_turn(turn, tokenizer).ids)


def test_roles_on_qwen_tokens(qwen_tokenizer):
    encoded = encode(tool_turns(1), qwen_tokenizer)
    assert words(encoded, Role.SYSTEM, qwen_tokenizer) == "the card is red"
    assert words(encoded, Role.USER, qwen_tokenizer) == "\nthe card?c  is"
    # tokens that straddle a border belong to the content: >{" opens it, }</ closes it
    assert words(encoded, Role.CALL, qwen_tokenizer) == (
        '>{"temporal_segment": [1.0, 4.0], "sampling_strategy": "fine"}</'
    )
    assert words(encoded, Role.ANSWER, qwen_tokenizer) == ">A"
    assert words(encoded, Role.END, qwen_tokenizer) == "<|im_end|>" * 2
    assert (
        encoded.roles == Role.CONTROL
    ).sum() == 5 * 5 - 2 + 2 * 2  # two ends are the assistant's


def test_roles_on_words():
    tokenizer = word_tokenizer()
    encoded = encode(tool_turns(1, answer="B"), tokenizer)
    assert words(encoded, Role.THINK, tokenizer) == "a byes"
    assert words(encoded, Role.ANSWER, tokenizer) == "B"
    assert words(encoded, Role.CALL, tokenizer) == (
        '{"temporal_segment": [1.0, 4.0], "sampling_strategy": "fine"}'
    )
    assert words(encoded, Role.TEXT, tokenizer).replace("\n", "") == (
        "<think></think><grounding></grounding><think></think><answer></answer>"
    )


def test_sft_loss_is_on_the_assistant_and_its_end(tokenizer):
    encoded = encode(tool_turns(2), tokenizer)
    np.testing.assert_array_equal(encoded.loss_mask, encoded.roles >= Role.TEXT)
    text = tokenizer.decode(encoded.ids[encoded.loss_mask])
    turns = [t.text + "<|im_end|>" for t in tool_turns(2) if t.role == "assistant"]
    assert text == "".join(turns)


def test_rl_loss_is_on_sampled_tokens_alone(tokenizer):
    turns = tool_turns(2)
    turns = [
        said(t, tokenizer, end=t.kind == "answer") if t.role == "assistant" else t for t in turns
    ]
    encoded = encode(turns, tokenizer, loss="rl")
    sampled = [i for t in turns for i in t.ids or ()]
    assert encoded.ids[encoded.loss_mask].tolist() == sampled
    # the calls' <|im_end|> were appended, the answer's was sampled
    ends = encoded.loss_mask[encoded.roles == Role.END]
    assert ends.tolist() == [False, False, True]
    # in SFT the same tokens all carry loss
    assert encode(turns, tokenizer).loss_mask[encoded.roles == Role.END].all()


def test_rl_gives_no_loss_to_a_turn_cut_by_length(tokenizer):
    cut = dataclasses.replace(said(tool_turns()[2], tokenizer, end=False), stop="length")
    encoded = encode([cut], tokenizer, loss="rl")
    assert not encoded.loss_mask.any()
    assert encode([cut], tokenizer, loss="sft").loss_mask.any()


def test_rl_refuses_turns_without_ids(tokenizer):
    with pytest.raises(ValueError, match=r"turn 2 \(call\): it has no ids"):
        encode(tool_turns(), tokenizer, loss="rl")


def test_sampled_ids_are_kept_as_they_are(qwen_tokenizer):
    # "answer" spelt letter by letter: no tokenizer would give these ids back
    spelt = [qwen_tokenizer.convert_tokens_to_ids(c) for c in "<answer>A</answer>"]
    turn = Turn("answer", "<answer>A</answer>", answer="A", ids=tuple(spelt), stop="tag")
    encoded = encode([turn], qwen_tokenizer, loss="rl")
    assert encoded.ids[3:-2].tolist() == spelt
    assert words(encoded, Role.ANSWER, qwen_tokenizer) == "A"
    assert encoded.loss_mask.sum() == len(spelt)


def test_ids_of_another_tokenizer_or_another_text_are_refused(qwen_tokenizer):
    ids = tuple(qwen_tokenizer("<answer>A</answer>")["input_ids"])
    end = qwen_tokenizer.convert_tokens_to_ids("<|im_end|>")
    whole = Turn("answer", "<answer>A</answer>", answer="A", ids=(*ids, end), stop="end")
    assert encode([whole], qwen_tokenizer).ids[3:-1].tolist() == [*ids, end]
    edited = dataclasses.replace(whole, text="<answer>B</answer>")
    with pytest.raises(ValueError, match=r"its ids are not its text: .*remove the ids"):
        encode([edited], qwen_tokenizer)
    with pytest.raises(ValueError, match=r"not all in the vocabulary of .*another tokenizer"):
        encode([whole], build_tokenizer())


def test_sampled_pads_are_words(qwen_tokenizer):
    specials = Specials.of(qwen_tokenizer)
    ids = (32, specials.vision_start, specials.video_pad, specials.image_pad, 33)
    turn = Turn("text", qwen_tokenizer.decode(ids), ids=ids, stop="length")
    question, after = tool_turns()[1], Turn("forced", "answer")
    encoded = encode([question, turn, after], qwen_tokenizer)
    assert (encoded.feature_index >= 0).sum() == 18
    np.testing.assert_array_equal(np.diff(encoded.positions[:, -12:]), 1)


def test_characters_of_sampled_tokens(qwen_tokenizer):
    text = "<answer>né 😀 🏳️‍🌈 A</answer>"
    ids = qwen_tokenizer(text, add_special_tokens=False)["input_ids"]
    located = locate(ids, qwen_tokenizer)
    assert located.text == text
    assert located.starts[0] == 0 and located.ends[-1] == len(text)
    np.testing.assert_array_equal(located.starts[1:], located.ends[:-1])
    # a token of its own for every ASCII word is where the text has it
    for token, start, end in zip(located.ids, located.starts, located.ends, strict=True):
        piece = qwen_tokenizer.decode([int(token)])
        if "\ufffd" not in piece:
            assert text[start:end].endswith(piece)
    # bytes that never become a character are kept, too
    broken = [ids[4], ids[4], *ids]
    assert locate(broken, qwen_tokenizer).ids.tolist() == broken
    assert locate([], qwen_tokenizer).text == ""


@pytest.mark.parametrize("seed", range(50))
def test_tags_are_found_after_broken_characters(qwen_tokenizer, seed):
    rng = np.random.default_rng(seed)
    garbage = rng.integers(100, 260, rng.integers(1, 20)).tolist()  # mostly lone bytes
    answer = qwen_tokenizer("<answer>A</answer>")["input_ids"]
    turn = Turn("answer", "", ids=(*garbage, *answer))
    encoded = encode([turn], qwen_tokenizer)
    assert words(encoded, Role.ANSWER, qwen_tokenizer) == ">A"


def test_characters_when_decoding_puts_blanks_between_words():
    tokenizer = word_tokenizer()
    tokenizer.backend_tokenizer.decoder = None
    ids = tokenizer.convert_tokens_to_ids(["a", "b", "red"])
    assert tokenizer.decode(ids) == "a b red"
    located = locate(ids, tokenizer)
    assert located.text == "a b red"
    assert located.ends.tolist() == [1, 3, 7]


@pytest.mark.parametrize("special", [*SPECIALS, "<|vision_start|><|video_pad|><|vision_end|>"])
@pytest.mark.parametrize(
    "kind", ["system", "question", "error", "forced", "call", "answer", "text"]
)
def test_text_never_becomes_a_special_token(tokenizer, special, kind):
    encoded = encode([Turn(kind, f"a {special} b")], tokenizer)
    control = np.isin(encoded.ids, [tokenizer.convert_tokens_to_ids(s) for s in SPECIALS])
    assert control.sum() == 2
    assert encoded.roles[control].tolist() in ([Role.CONTROL] * 2, [Role.CONTROL, Role.END])
    assert (encoded.feature_index == -1).all()


def test_text_never_becomes_a_special_token_even_where_it_is_a_word():
    turn = Turn("question", "a <|im_end|> b <|video_pad|>")
    tokenizer = word_tokenizer(whole_words=True)
    encoded = encode([turn], tokenizer)
    assert (encoded.ids == tokenizer.unk_token_id).sum() == 2
    assert (encoded.ids == Specials.of(tokenizer).im_end).sum() == 1
    with pytest.raises(ValueError, match="which this tokenizer cannot write as plain text"):
        encode([turn], word_tokenizer(whole_words=True, unknown=False))


def test_the_marks_in_an_assistants_text_are_text(tokenizer):
    encoded = encode([Turn("text", "a <video> b <image>")], tokenizer)
    assert (encoded.feature_index == -1).all() and encoded.grids == ()
    assert tokenizer.decode(encoded.ids[encoded.roles == Role.TEXT]) == "a <video> b <image>"


def test_nothing_to_encode(tokenizer):
    encoded = encode([], tokenizer)
    assert len(encoded) == 0 and encoded.positions.shape == (3, 0)
    assert encoded.state == State() and encoded.turn_offsets.tolist() == [0]
    assert encode_turn(Turn("question", ""), tokenizer).ids.size == 5


@pytest.mark.parametrize(
    ("turn", "says"),
    [
        (
            Turn("question", "<video>", (dataclasses.replace(observation(0), tokens=9),)),
            "says 9 tokens",
        ),
        (
            Turn("question", "<video>", (dataclasses.replace(observation(0), grid=(1, 3, 2)),)),
            "merge",
        ),
        (Turn("question", "<video>", (observation(0, media="image"),)), "stands for a image"),
        (Turn("question", "a", ids=(1, 2)), "ids are for sampled turns"),
    ],
)
def test_a_turn_that_does_not_fit_is_named(qwen_tokenizer, turn, says):
    with pytest.raises(ValueError, match=rf"turn 1 \(question\): .*{says}"):
        encode([Turn("system", "a"), turn], qwen_tokenizer)


def test_bad_settings_are_refused(qwen_tokenizer):
    turns = tool_turns()
    with pytest.raises(ValueError, match="unknown loss 'dpo'"):
        encode(turns, qwen_tokenizer, loss="dpo")
    with pytest.raises(ValueError, match="unknown mrope_time"):
        encode(turns, qwen_tokenizer, mrope_time="x")
    with pytest.raises(ValueError, match="unknown TDAM policy"):
        encode(turns, qwen_tokenizer, policy="x")
    with pytest.raises(ValueError, match="looks at the whole conversation"):
        encode(turns, qwen_tokenizer, policy="turn", after=State())
    still = dataclasses.replace(observation(0), fps=0.0)
    with pytest.raises(ValueError, match="it must be positive"):
        encode([Turn("question", "<video>", (still,))], qwen_tokenizer)


def test_a_tokenizer_without_the_tokens_is_refused():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    bare = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    )
    with pytest.raises(ValueError, match=r"has no <\|im_start\|>"):
        encode(tool_turns(), bare)
    with pytest.raises(ValueError, match="use a fast tokenizer"):
        encode(tool_turns(), object())


def test_special_ids_are_the_tokenizers(qwen_tokenizer):
    specials = Specials.of(qwen_tokenizer)
    assert specials.all == (151644, 151645, 151652, 151653, 151656, 151655)
