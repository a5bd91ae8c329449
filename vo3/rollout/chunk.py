"""What the host hands to the programs of groups: new tokens, and how far every cache has come."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from jaxtyping import Array, Bool, Int, UInt32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Chunk:
    """New tokens, one row a group, and the turns that begin behind them.

    Attributes:
      ids: token ids.
      positions: M-RoPE positions, rows first.
      rows: where in the shard's buffer the vision feature is that stands there, -1 for plain tokens.
      leaf: which leaf a token belongs to; not read for a prompt.
      slots: where it stands in its prefix or suffix, -1 for padding.
      last: index in the row of the token that a leaf's turn follows on, -1 where none begins.
      position, count, seed: of the turns that begin; see `Drawn`.
    """

    ids: Int[Array, "G L"]
    positions: Int[Array, "G 3 L"]
    rows: Int[Array, "G L"]
    leaf: Int[Array, "G L"]
    slots: Int[Array, "G L"]
    last: Int[Array, "G n"]
    position: Int[Array, "G n"]
    count: Int[Array, "G n"]
    seed: UInt32[Array, "G n"]

    @classmethod
    def empty(cls, groups: int, leaves: int, tokens: int) -> Chunk:
        """Padding only; numpy fields to be filled."""
        return cls(
            ids=np.zeros((groups, tokens), np.int32),
            positions=np.zeros((groups, 3, tokens), np.int32),
            rows=np.full((groups, tokens), -1, np.int32),
            leaf=np.zeros((groups, tokens), np.int32),
            slots=np.full((groups, tokens), -1, np.int32),
            last=np.full((groups, leaves), -1, np.int32),
            position=np.zeros((groups, leaves), np.int32),
            count=np.zeros((groups, leaves), np.int32),
            seed=np.zeros((groups, leaves), np.uint32),
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Lengths:
    """Slots in use, and whose turn it is.

    Attributes:
      prefix: of each group.
      suffix: of each leaf.
      active: leaves that are sampling.
    """

    prefix: Int[Array, " G"]
    suffix: Int[Array, "G n"]
    active: Bool[Array, "G n"]

    @classmethod
    def empty(cls, groups: int, leaves: int) -> Lengths:
        """Nothing in use; numpy fields to be filled."""
        return cls(
            np.zeros(groups, np.int32),
            np.zeros((groups, leaves), np.int32),
            np.zeros((groups, leaves), bool),
        )
