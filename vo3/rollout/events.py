"""What a rollout tells while it runs. A callback gets these in the order in which they happen."""

from __future__ import annotations

import dataclasses

from vo3 import trajectory
from vo3.video import Clip


@dataclasses.dataclass(frozen=True)
class TurnStart:
    """The model begins a turn.

    Attributes:
      number: index of the turn in the trajectory.
      forced: whether it must answer.
    """

    number: int
    forced: bool = False


@dataclasses.dataclass(frozen=True)
class Token:
    """One sampled token.

    Attributes:
      number: index of the turn.
      id: the token.
      text: what it adds to the turn's text; empty until a character that spans several tokens is whole.
    """

    number: int
    id: int
    text: str


@dataclasses.dataclass(frozen=True)
class Observation:
    """The model is shown a clip.

    Attributes:
      number: index of the turn that shows it.
      observation: what the trajectory keeps of it.
      clip: its frames.
      seconds: time to read it from the video.
    """

    number: int
    observation: trajectory.Observation
    clip: Clip
    seconds: float


@dataclasses.dataclass(frozen=True)
class TurnEnd:
    """A turn of anyone is complete.

    Attributes:
      number: index of the turn.
      turn: the turn.
    """

    number: int
    turn: trajectory.Turn


Event = TurnStart | Token | Observation | TurnEnd
