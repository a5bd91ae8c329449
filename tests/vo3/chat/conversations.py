"""Conversations and tokenizers for the tests of this folder."""

from __future__ import annotations

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from vo3.chat.tags import format_answer, format_call, format_turn
from vo3.trajectory import Call, Observation, Turn

SPECIALS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
WORDS = [
    "system",
    "user",
    "assistant",
    "think",
    "grounding",
    "answer",
    "temporal_segment",
    "sampling_strategy",
    "coarse",
    "medium",
    "fine",
    "video",
    "image",
    "a",
    "b",
    "c",
    "A",
    "B",
    "yes",
    "the",
    "card",
    "is",
    "red",
    "im_end",
    "im_start",
    "video_pad",
]
MARKS = ["\n", " ", "<", ">", "/", "{", "}", "[", "]", '"', ":", ",", ".", "|", "?", *"0123456789"]


def word_tokenizer(*, unknown: bool = True, whole_words: bool = False) -> PreTrainedTokenizerFast:
    """A word-level tokenizer, "\\n" a token; `whole_words` splits at blanks only, so that a special token is a word."""
    names = [*SPECIALS, *(["<unk>"] if unknown else []), *WORDS, *MARKS]
    core = Tokenizer(
        models.WordLevel(
            {name: i for i, name in enumerate(names)}, unk_token="<unk>" if unknown else "?"
        )
    )
    pattern = r"\n| |[^\n ]+" if whole_words else r"[A-Za-z_]+|[^A-Za-z_]"
    core.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>" if unknown else None,
        additional_special_tokens=SPECIALS,
        clean_up_tokenization_spaces=False,
    )


def observation(index, grid=(2, 4, 4), *, fps=2.0, media="video", strategy=None) -> Observation:
    t, h, w = grid
    frames = 2 * t if media == "video" else 1
    return Observation(
        index=index,
        start=0.0,
        end=frames / fps,
        fps=fps,
        times=tuple(i / fps for i in range(frames)),
        indices=tuple(range(frames)),
        height=14 * h,
        width=14 * w,
        grid=grid,
        tokens=t * h * w // 4,
        strategy=strategy,
        media=media,
    )


def tool_turns(calls: int = 2, *, answer: str = "A", failed: bool = False) -> list[Turn]:
    """System, question, `calls` calls with their clips (an error turn for the first if `failed`), an answer."""
    turns = [
        Turn("system", "the card is red"),
        Turn("question", "<video>\nthe card?", (observation(0, (3, 4, 6)),)),
    ]
    for number in range(1, calls + 1):
        call = Call(1.0, 3.0 + number, "fine")
        turns.append(Turn("call", format_turn("a b", format_call(call)), call=call))
        if failed and number == 1:
            turns.append(Turn("error", "no", error="no"))
        else:
            clip = observation(number, (1 + number % 2, 4, 4), strategy="fine", fps=1.5)
            turns.append(Turn("observation", "c <video> is", (clip,)))
    return [*turns, Turn("answer", format_turn("yes", format_answer(answer)), answer=answer)]


def random_turns(rng: np.random.Generator) -> list[Turn]:
    """A conversation with a few calls, failed ones, images and unusual wording."""
    turns = tool_turns(
        int(rng.integers(0, 4)),
        answer=str(rng.choice(["A", "yes.", "é 😀", "", "A, B"])),
        failed=bool(rng.integers(2)),
    )
    if rng.integers(2):
        shown = (observation(0, (2, 6, 4)), observation(1, (1, 4, 2), media="image"))
        turns[1] = Turn("question", "\n a<video><image> the card?\n", shown)
    return turns
