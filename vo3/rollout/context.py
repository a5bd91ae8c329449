"""The host's side of one conversation: its tokens, where they stand, and how many of them the cache holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int32

from vo3.chat import Encoded, State


@dataclasses.dataclass(frozen=True)
class Features:
    """Vision features on the device.

    Attributes:
      start: row of the conversation's features that the first one is.
      count: how many; the array may be longer.
      array: [M, D].
    """

    start: int
    count: int
    array: Float[object, "M D"]


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Tokens that are not in the cache yet.

    Attributes:
      ids: token ids.
      positions: M-RoPE positions.
      rows: row of the conversation's vision features that stands there, -1 for plain tokens.
    """

    ids: Int32[np.ndarray, "L"]
    positions: Int32[np.ndarray, "3 L"]
    rows: Int32[np.ndarray, "L"]

    def __len__(self) -> int:
        return self.ids.size

    def __getitem__(self, part: slice) -> Tokens:
        return Tokens(self.ids[part], self.positions[:, part], self.rows[part])


@dataclasses.dataclass
class Counts:
    """Tokens and patches that went through the model.

    Attributes:
      prefilled: tokens that were not sampled and went through it.
      shared: tokens whose keys and values others had computed.
      sampled: tokens that were drawn.
      patches: of pictures.
    """

    prefilled: int = 0
    shared: int = 0
    sampled: int = 0
    patches: int = 0


class Context:
    """A conversation's tokens in order. Only appended to; `cached` tells how far the cache has come."""

    def __init__(self, state: State | None = None) -> None:
        """An empty conversation, or one that goes on after `state`, all of which is in the cache."""
        self.state = state or State()
        self.cached = self.state.length
        self.features: list[Features] = []
        self._waiting: list[Tokens] = []

    def __len__(self) -> int:
        return self.state.length

    def append(self, encoded: Encoded) -> None:
        """Appends encoded turns, made with `after=self.state`."""
        self._waiting.append(Tokens(encoded.ids, encoded.positions, encoded.feature_index))
        self.state = encoded.state

    def append_ids(self, ids: Sequence[int]) -> None:
        """Appends plain tokens: sampled ones, headers, tails."""
        tokens = np.asarray(ids, np.int32)
        if not tokens.size:
            return
        places = np.arange(self.state.position, self.state.position + tokens.size, dtype=np.int32)
        self._waiting.append(
            Tokens(
                tokens,
                np.broadcast_to(places, (3, tokens.size)),
                np.full(tokens.size, -1, np.int32),
            )
        )
        self.state = dataclasses.replace(
            self.state,
            length=self.state.length + tokens.size,
            position=self.state.position + tokens.size,
        )

    def waiting(self) -> Tokens:
        """The tokens after the first `cached`."""
        if not self._waiting:
            empty = np.zeros(0, np.int32)
            return Tokens(empty, np.zeros((3, 0), np.int32), empty)
        return Tokens(
            np.concatenate([x.ids for x in self._waiting]),
            np.concatenate([x.positions for x in self._waiting], axis=1),
            np.concatenate([x.rows for x in self._waiting]),
        )

    def mark_cached(self, count: int) -> None:
        """The cache now holds `count` more tokens. Features that no later token shows are let go."""
        rest = self.waiting()[count:]
        self._waiting = [rest] if len(rest) else []
        self.cached += count
        if not (rest.rows >= 0).any():
            self.features = []
