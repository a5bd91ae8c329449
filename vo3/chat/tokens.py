"""What the chat room needs of a tokenizer: special ids by name, text to ids without injection, ids to characters."""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from vo3.chat.tags import blocks

Tokenizer = Any  # a fast tokenizer of transformers; not imported, so that this room stays light


class Role(enum.IntEnum):
    """What a token is, int8. `ASSISTANT` roles are those from `TEXT` on."""

    CONTROL = 0  # ChatML framing, vision start and end: nobody's words
    SYSTEM = 1
    USER = 2
    OVERVIEW = 3  # video tokens of the first video
    CLIP = 4  # video tokens of later videos
    IMAGE = 5
    TEXT = 6  # the assistant's text outside the blocks below, tags included
    THINK = 7
    CALL = 8  # content of <grounding>
    ANSWER = 9  # content of <answer>
    END = 10  # the assistant's <|im_end|>


@dataclasses.dataclass(frozen=True)
class Specials:
    """Ids of the special tokens, looked up by name."""

    im_start: int
    im_end: int
    vision_start: int
    vision_end: int
    video_pad: int
    image_pad: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Specials:
        """Reads them from a tokenizer.

        Raises:
          ValueError: a token is missing, or the tokenizer is not a fast one.
        """
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(
                f"{type(tokenizer).__name__} gives no character offsets; use a fast tokenizer (tokenizer.json)"
            )
        ids = {}
        for field in dataclasses.fields(cls):
            token = f"<|{field.name}|>"
            found = tokenizer.convert_tokens_to_ids(token)
            if found is None or tokenizer.convert_ids_to_tokens(found) != token:
                raise ValueError(f"the tokenizer has no {token}; add it as a special token")
            ids[field.name] = int(found)
        return cls(**ids)

    @property
    def all(self) -> tuple[int, ...]:
        """Every id."""
        return dataclasses.astuple(self)


@dataclasses.dataclass(frozen=True)
class TextTokens:
    """Tokens of a text. `starts`, `ends`: the characters [start, end) of `text` that each one stands for."""

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    text: str


_SURROGATE = re.compile("[\ud800-\udfff]")


def tokenize(text: str, tokenizer: Tokenizer, specials: Specials) -> TextTokens:
    """Tokens of somebody's words. Text that looks like a special token stays text; half a surrogate pair, which no tokenizer takes, becomes U+FFFD.

    Raises:
      ValueError: the tokenizer turns text into a special token and has no unknown token to put there instead.
    """
    text = _SURROGATE.sub("\ufffd", text)  # one for one: offsets stay
    coded = tokenizer(
        text,
        add_special_tokens=False,
        return_offsets_mapping=True,
        split_special_tokens=True,
        verbose=False,
    )
    ids = np.asarray(coded["input_ids"], np.int32)
    offsets = np.asarray(coded["offset_mapping"], np.int32).reshape(-1, 2)
    # A word-level vocabulary may hold the special tokens as words of its own and know no other way to write them.
    forged = np.isin(ids, specials.all)
    if forged.any():
        unknown = tokenizer.unk_token_id
        if unknown is None or unknown in specials.all:
            name = tokenizer.convert_ids_to_tokens(int(ids[forged][0]))
            raise ValueError(
                f"the text holds {name}, which this tokenizer cannot write as plain text; remove it"
            )
        ids = np.where(forged, np.int32(unknown), ids)
    return TextTokens(ids, offsets[:, 0], offsets[:, 1], text)


def locate(ids: Sequence[int], tokenizer: Tokenizer) -> TextTokens:
    """The characters of tokens that were sampled: ids stay as they are, the text is their decoding.

    Several tokens may make one character (bytes of UTF-8): the last one gets it, the others an empty span before it.

    Raises:
      ValueError: an id that the vocabulary has not got.
    """
    ids = [int(i) for i in ids]
    if ids and not 0 <= min(ids) <= max(ids) < len(tokenizer):
        raise ValueError(
            f"ids from {min(ids)} to {max(ids)} are not all in the vocabulary of {len(tokenizer)}: another tokenizer sampled them"
        )

    def decode(part: list[int]) -> str:
        return tokenizer.decode(part, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    whole = decode(ids)
    pieces = [decode([i]) for i in ids]
    if "".join(pieces) != whole:
        pieces = _stream(ids, decode)
    ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int32)
    starts = np.concatenate([np.zeros(min(1, len(ids)), np.int32), ends[:-1]])
    return TextTokens(np.asarray(ids, np.int32), starts, ends, "".join(pieces))


def _stream(ids: list[int], decode: Any) -> list[str]:
    """Text that each token adds when decoded after the tokens before it."""
    pieces, anchor, read = [], 0, 0
    for i in range(len(ids)):
        before, now = decode(ids[anchor:read]), decode(ids[anchor : i + 1])
        # an unfinished character decodes to U+FFFD: wait for its last byte, but not beyond the end
        unfinished = now.endswith("\ufffd") and i - read < 4 and i + 1 < len(ids)
        if unfinished or len(now) < len(before):
            pieces.append("")
            continue
        pieces.append(now[len(before) :])
        anchor, read = read, i + 1
    return pieces


def assistant_roles(tokens: TextTokens, specials: Specials) -> np.ndarray:
    """Roles of an assistant turn's tokens, int8 [L].

    A token belongs to a block when it holds a character of its content: with `>A` as one token the answer's first
    token is `>A`. A call or an answer wins over the think text around it.
    """
    roles = np.full(tokens.ids.shape, Role.TEXT, np.int8)
    for tag, role in (("think", Role.THINK), ("grounding", Role.CALL), ("answer", Role.ANSWER)):
        for start, end in blocks(tokens.text, tag):
            roles[(tokens.starts < end) & (tokens.ends > start)] = role
    roles[tokens.ids == specials.im_end] = Role.END
    return roles
