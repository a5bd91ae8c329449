"""Sampled ids to text as they come, and the tags that end a turn."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Literal

from vo3.chat.tokens import Tokenizer

Stop = Literal["tag", "end", "length"]

# An unfinished character decodes to this; one of UTF-8 takes at most four bytes, each maybe a token of its own.
_UNFINISHED = "\ufffd"
_MAX_BYTES = 4


@dataclasses.dataclass(frozen=True)
class SampledTurn:
    """What was sampled in a turn.

    Attributes:
      ids: as sampled, an end token included.
      logprobs: of each id; see `vo3.rollout.sampler.Drawn`.
      stop: why it ended.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stop: Stop


class TextStream:
    """Text of ids that come one at a time: each id is decoded with those just before it, so the cost does not grow."""

    def __init__(self, tokenizer: Tokenizer):
        self.text = ""
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._anchor = self._read = 0

    def push(self, token: int) -> str:
        """The text that `token` adds."""
        self._ids.append(int(token))
        return self._pull(wait=True)

    def finish(self) -> str:
        """The text of an unfinished character that was being waited for."""
        return self._pull(wait=False) if self._read < len(self._ids) else ""

    def _pull(self, *, wait: bool) -> str:
        before = self._decode(self._ids[self._anchor : self._read])
        now = self._decode(self._ids[self._anchor :])
        waiting = len(self._ids) - self._read
        if wait and now.endswith(_UNFINISHED) and waiting < _MAX_BYTES:
            return ""
        piece = now[len(before) :]
        self._anchor, self._read = self._read, len(self._ids)
        self.text += piece
        return piece

    def _decode(self, ids: Sequence[int]) -> str:
        return decode(ids, self._tokenizer)


def decode(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """The text of ids, special tokens written out."""
    return tokenizer.decode(
        list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )


class StopWatch:
    """Says when a turn ends.

    Tags are looked for in the text, not in the ids: a tag may be split over tokens in many ways, and its last token may
    carry text beyond it.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, tags: Collection[str], ends: Collection[int], limit: int
    ):
        """Watches a turn.

        Args:
          tokenizer: of the model.
          tags: texts that end the turn.
          ends: ids that end it, like `<|im_end|>`.
          limit: most tokens.
        """
        self.stream = TextStream(tokenizer)
        self._tags = tuple(tags)
        self._ends = frozenset(ends)
        self._limit = limit
        self._count = 0
        self._longest = max((len(tag) for tag in self._tags), default=0)

    def push(self, token: int) -> tuple[str, Stop | None]:
        """The text that `token` adds, and why the turn ends with it, if it does."""
        self._count += 1
        if token in self._ends:
            return self.stream.finish(), "end"
        piece = self.stream.push(token)
        if piece and self._tags:
            tail = self.stream.text[-(self._longest + len(piece)) :]
            if any(tag in tail for tag in self._tags):
                return piece, "tag"
        if self._count >= self._limit:
            return piece + self.stream.finish(), "length"
        return piece, None
