"""The limits of a rollout: evaluation's and RL's."""

from __future__ import annotations

import dataclasses
from typing import get_args

from vo3.chat.dialects import DEFAULT, get_dialect
from vo3.chat.dialects.base import Limits, Mode

# What a mode of a dialect gives where nothing is given here.
_OF_DIALECT = ("max_turns", "force_answer", "stop", "max_new_tokens")


@dataclasses.dataclass(frozen=True)
class RolloutPolicy:
    """When a turn stops, and when a rollout does. Fields left at None take the value that the dialect has for the mode.

    Attributes:
      mode: Video-o3's `eval`: 8 rounds, then one forced answer; a turn stops at `</grounding>` or `</answer>`. `rl`: 6 rounds, no forced
        answer; a turn stops at `</grounding>`, else at `<|im_end|>`. It also decides the outcome of what is neither call nor answer (`text` or
        `void`), and whether a lost video ends the rollout.
      max_turns: rounds in which the model may call.
      force_answer: whether a rollout that hits a limit while calling is asked once for its final answer.
      stop: tags that end a turn; they stay in the text.
      max_new_tokens: most tokens sampled in a turn.
      max_videos: most videos in a context, the overview included.
      max_length: most tokens in a context; None: the model's, at most the dialect's (Video-o3: 32,768).
      reserve: no clip is shown, and nothing called, in the last tokens of the context; None: 2,000, or an eighth of a
        context shorter than 16,000.
      dialect: how the model calls; see `vo3.chat.dialects`.
    """

    mode: Mode = "eval"
    max_turns: int = None  # type: ignore[assignment]
    force_answer: bool = None  # type: ignore[assignment]
    stop: tuple[str, ...] = None  # type: ignore[assignment]
    max_new_tokens: int = None  # type: ignore[assignment]
    max_videos: int = 12
    max_length: int | None = None
    reserve: int | None = None
    dialect: str = DEFAULT

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ValueError(f"unknown rollout mode {self.mode!r}; one of {get_args(Mode)}")
        for name in _OF_DIALECT:
            if getattr(self, name) is None:
                object.__setattr__(self, name, getattr(self.limits, name))
        for name in ("max_turns", "max_new_tokens", "max_videos", "max_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"RolloutPolicy.{name} must be at least 1, got {value}")
        if self.reserve is not None and self.reserve < 0:
            raise ValueError(f"RolloutPolicy.reserve must not be negative, got {self.reserve}")

    @property
    def limits(self) -> Limits:
        """What the dialect has for the mode."""
        return get_dialect(self.dialect).limits(self.mode)

    def reserved(self, max_length: int) -> int:
        """Tokens kept free at the end of a context of `max_length`."""
        return min(2000, max_length // 8) if self.reserve is None else self.reserve
