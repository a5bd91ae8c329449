"""What groups of rollouts cost, counted."""

from __future__ import annotations

import collections
import dataclasses


@dataclasses.dataclass
class GroupCounts:
    """Sums over everything that an engine's groups did.

    Attributes:
      groups: that ended; errors: those of them that could not begin.
      rollouts: that ended, by outcome.
      lost: rollouts that a video's error ended; they are void.
      overviews: overviews that were shown, one a group.
      prefilled: tokens that went through the model and were not sampled; every token of a prefix counts once a group.
      slots: tokens that the calls which did so had room for, padding included.
      sampled: tokens drawn and kept.
      steps: decoding steps.
      patches: that went through the vision tower, padding left aside.
      waited_s: seconds in which nothing was left to give to the device, as every leaf waited for a host thread.
    """

    groups: int = 0
    errors: int = 0
    rollouts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    lost: int = 0
    overviews: int = 0
    prefilled: int = 0
    slots: int = 0
    sampled: int = 0
    steps: int = 0
    patches: int = 0
    waited_s: float = 0.0
