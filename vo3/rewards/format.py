"""Format of a rollout: think then call in every turn but the last, think then answer in the last."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Literal

from vo3.rewards.answer import segment_pair
from vo3.trajectory import STRATEGIES

_THINK = "<think>"


@dataclasses.dataclass(frozen=True)
class FormatScore:
    """Format of one rollout.

    Attributes:
      score: in [0, 1].
      call_turns: number of well-placed call turns; 0 when the score is 0 for a misplaced turn.
    """

    score: float
    call_turns: int


def block_content(text: str, tag: Literal["grounding", "answer"]) -> str | None:
    r"""What the second block of a `<think>...</think><tag>...</tag>` turn holds, or None where the turn has another form.

    At most one newline may stand before, between and after the two blocks (a second one is let pass at the very end,
    as in the original, whose pattern ends in `\n?$`). The blocks may hold anything, tags included: the first border between them
    counts, and the last closing tag.
    """
    body = text.removeprefix("\n")
    for _ in range(2):
        body = body.removesuffix("\n")
    close = f"</{tag}>"
    if not body.startswith(_THINK) or not body.endswith(close):
        return None
    border = re.compile(rf"</think>\n?<{tag}>").search(body, len(_THINK))
    end = len(body) - len(close)
    if border is None or border.end() > end:
        return None
    return body[border.end() : end]


def call_faults(content: str) -> int:
    """How many things are wrong in the content of a `<grounding>` block.

    One each: JSON that does not parse or has no keys at all; `temporal_segment` missing; `sampling_strategy` missing; a
    strategy that is none of the three; a segment that is no pair. Strict JSON: what the tolerant parser forgives
    (single quotes, text around the braces) still costs format reward.
    """
    try:
        data = json.loads(content)
    except (ValueError, RecursionError):
        return 1
    if isinstance(data, (list, str)):
        return 2  # both keys are missing
    if not isinstance(data, dict):
        return 1
    faults = 0
    if "sampling_strategy" not in data or data["sampling_strategy"] not in list(STRATEGIES):
        faults += 1
    pair = data.get("temporal_segment")
    if not isinstance(pair, list) or len(pair) != 2:
        faults += 1
    return faults


def format_score(turns: Sequence[str]) -> FormatScore:
    """Format of a rollout with calls.

    1 when every turn but the last is exactly think + grounding and the last think + answer, else 0; each fault of a
    call takes off 1 / (number of turns), down to 0.

    Args:
      turns: the assistant's texts in order.
    """
    if not turns:
        return FormatScore(0.0, 0)
    calls = [block_content(text, "grounding") for text in turns[:-1]]
    if block_content(turns[-1], "answer") is None or any(content is None for content in calls):
        return FormatScore(0.0, 0)
    faults = sum(call_faults(content) for content in calls if content is not None)
    return FormatScore(max(0.0, 1.0 - faults * (1.0 / len(turns))), len(calls))


def segment_format(text: str) -> float:
    """1.0 when a turn is exactly think + answer and the answer parses to a segment, else 0.0 (temporal grounding)."""
    content = block_content(text, "answer")
    return float(content is not None and segment_pair(content) is not None)
