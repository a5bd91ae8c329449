"""What an agent's dialect decides: how a turn is read, how a call is written, where a turn stops, which limits hold."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from vo3.chat import tags
from vo3.chat.tags import ParsedTurn
from vo3.trajectory import Call

Mode = Literal["eval", "rl"]


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of a rollout, as published with the dialect.

    Attributes:
      max_turns: rounds in which the model may call.
      force_answer: whether a rollout that hits a limit while calling is asked once for its final answer.
      stop: texts that end a turn, beside the end token; they stay in the text.
      max_new_tokens: most tokens sampled in a turn.
      max_length: most tokens in a context.
    """

    max_turns: int
    force_answer: bool
    stop: tuple[str, ...]
    max_new_tokens: int
    max_length: int = 32_768


class Dialect:
    """One agent's way to call its tool and to answer; docs/dialects.md says how to write one.

    An assistant turn thinks in `<think>`, then calls in a block `<tag>...</tag>` or answers in `<answer>`. What a call shows comes
    back in a user turn that the prompt pack words.

    Attributes:
      name: what it is asked for by.
      tag: of the block that holds a call.
      pack: prompt pack of a checkpoint that names none.
      recipe: of the `CropPolicy` of a checkpoint that names none.
      eval_limits, rl_limits: by mode.
    """

    name: str
    tag: str
    pack: str
    recipe: str
    eval_limits: Limits
    rl_limits: Limits

    def read_call(self, content: str, duration: float) -> Call | str:
        """Reads what stands in a call's block.

        Args:
          content: the text between the tags; anything.
          duration: length of the video, seconds.

        Returns:
          The call, its window clipped to the video, or what is wrong with it, addressed to the model.
        """
        raise NotImplementedError

    def write_call(self, call: Call, *, video: str = "", decimals: int | None = None) -> str:
        """What stands in a call's block; `read_call` is its inverse. `video`: its path, where the tool takes one."""
        raise NotImplementedError

    def read_answer(self, content: str) -> str:
        """The answer in an `<answer>` block."""
        return content.strip()

    def limits(self, mode: Mode) -> Limits:
        """The limits of a mode."""
        return self.eval_limits if mode == "eval" else self.rl_limits

    @property
    def call_end(self) -> str:
        """What closes a call."""
        return f"</{self.tag}>"

    def parse(self, text: str, duration: float) -> ParsedTurn:
        """Reads an assistant turn; see `vo3.chat.tags.read_turn`. Nothing that a model writes makes it raise."""
        return tags.read_turn(
            text, duration, tag=self.tag, read_call=self.read_call, read_answer=self.read_answer
        )

    def format_call(self, call: Call, *, video: str = "", decimals: int | None = None) -> str:
        """The block of a call. `decimals=None` writes the times so that reading gives them back exactly."""
        return f"<{self.tag}>{self.write_call(call, video=video, decimals=decimals)}{self.call_end}"


def seconds(value: object, name: str) -> float | str:
    """A finite number, also one that is written as text, or what is wrong with it, addressed to the model."""
    wrong = f"{name} is {tags.shortened(value)}, which is not a finite number. Write seconds, like 12.5."
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return wrong
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return wrong
    return number if math.isfinite(number) else wrong
