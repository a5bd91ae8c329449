"""How long every trajectory of a source becomes, known before any of them is decoded."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Int32


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Sizes by number in the source.

    Attributes:
      tokens: tokens of the whole encoded trajectory; 0 where it cannot be used.
      patches: vision patches of all its clips.
    """

    tokens: Int32[np.ndarray, "N"]
    patches: Int32[np.ndarray, "N"]

    def __len__(self) -> int:
        return self.tokens.size
