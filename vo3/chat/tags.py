"""The tags an assistant writes: a tolerant parser, and the format functions that are its inverse.

An assistant turn is one of

    <think>...</think>\n<grounding>{"temporal_segment": [t0, t1], "sampling_strategy": "fine"}</grounding>
    <think>...</think>\n<answer>...</answer>

with t0, t1 in seconds of the whole video: Video-o3's dialect. What other dialects share with it is here too (see
`vo3.chat.dialects`). The parser never raises on any text: what is wrong with a call comes back
as a message that says what and how to put it right, and that message becomes the error turn.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any, Literal

from vo3.trajectory import STRATEGIES, Call

CALL_END = "</grounding>"
ANSWER_END = "</answer>"

MIN_WINDOW = 1.0  # seconds
# 1.9 - 0.9 is a little less than 1 in binary; that is no reason to refuse the call.
_SLACK = 1e-6

_SEGMENT_KEY = "temporal_segment"
_STRATEGY_KEY = "sampling_strategy"
_EXAMPLE = '{"temporal_segment": [12.0, 20.0], "sampling_strategy": "fine"}'


@dataclasses.dataclass(frozen=True)
class Segment:
    """An interval of the whole video, in seconds, start <= end."""

    start: float
    end: float


@dataclasses.dataclass(frozen=True)
class ParsedTurn:
    """What an assistant turn says.

    Attributes:
      kind: `call` (well formed or not), `answer`, or `text` when there is neither.
      call: the window, clipped to the video; None when the call is malformed.
      answer: content of the last `<answer>` block, stripped.
      error: why a call cannot be carried out, addressed to the model.
      think: content of the first `<think>` block, stripped, if there is one.
    """

    kind: Literal["call", "answer", "text"]
    call: Call | None = None
    answer: str | None = None
    error: str | None = None
    think: str | None = None


def blocks(text: str, tag: str) -> list[tuple[int, int]]:
    """Contents of the closed `<tag>` blocks as [start, end) characters, in order.

    A closing tag belongs to the nearest opening before it, so that a tag that is only mentioned ("I will write
    <answer> later") does not swallow what follows. Openings without a closing are no blocks.
    """
    opening, closing = f"<{tag}>", f"</{tag}>"
    found, after = [], 0
    while (end := text.find(closing, after)) >= 0:
        start = text.rfind(opening, after, end)
        if start >= 0:
            found.append((start + len(opening), end))
        after = end + len(closing)
    return found


def parse_turn(text: str, duration: float) -> ParsedTurn:
    """Reads an assistant turn of Video-o3; see `read_turn`."""
    return read_turn(text, duration, tag="grounding", read_call=parse_call, read_answer=str.strip)


def read_turn(
    text: str,
    duration: float,
    *,
    tag: str,
    read_call: Callable[[str, float], Call | str],
    read_answer: Callable[[str], str],
) -> ParsedTurn:
    """Reads an assistant turn.

    A turn with both a call and an answer is what closes last: generation stops at the tag that counted, so that is
    where the text ends (in RL an answer may be followed by a call and is then not final).

    Args:
      text: the assistant's text; anything.
      duration: length of the video, seconds.
      tag: of the blocks that hold a call.
      read_call: reads the content of the last call: the call, or what is wrong with it.
      read_answer: reads the content of the last answer.

    Raises:
      ValueError: only for a duration that is not a positive number.
    """
    if not duration > 0:
        raise ValueError(f"duration must be a positive number of seconds, got {duration!r}")
    thinks, calls, answers = (blocks(text, name) for name in ("think", tag, "answer"))
    think = text[slice(*thinks[0])].strip() if thinks else None
    if calls and (not answers or calls[-1][1] > answers[-1][1]):
        result = read_call(text[slice(*calls[-1])], duration)
        if isinstance(result, Call):
            return ParsedTurn("call", call=result, think=think)
        return ParsedTurn("call", error=result, think=think)
    if answers:
        return ParsedTurn("answer", answer=read_answer(text[slice(*answers[-1])]), think=think)
    return ParsedTurn("text", think=think)


def parse_call(content: str, duration: float) -> Call | str:
    """Reads the content of a `<grounding>` block: the call, clipped to the video, or what is wrong with it."""
    data = parse_object(content)
    if isinstance(data, str):
        return data
    missing = [key for key in (_SEGMENT_KEY, _STRATEGY_KEY) if key not in data]
    if missing:
        return f"the key {' and the key '.join(map(repr, missing))} is missing. Write both, like {_EXAMPLE}."
    strategy = data[_STRATEGY_KEY]
    if not isinstance(strategy, str) or strategy not in STRATEGIES:
        return (
            f"{_STRATEGY_KEY} is {shortened(strategy)}; it must be one of {', '.join(STRATEGIES)}."
        )
    segment = _parse_pair(data[_SEGMENT_KEY])
    if isinstance(segment, str):
        return segment
    t0, t1 = segment
    if t1 < t0:
        return f"the window [{t0:g}, {t1:g}] is reversed. Write the earlier time first."
    if t0 >= duration or t1 <= 0:
        return (
            f"the window [{t0:g}, {t1:g}] lies outside the video, which lasts from 0 to {duration:g} seconds. "
            "Choose a window inside it."
        )
    start, end = max(t0, 0.0), min(t1, float(duration))
    if end - start < MIN_WINDOW - _SLACK:
        return (
            f"the window [{t0:g}, {t1:g}] covers {end - start:g} seconds of the video. "
            f"It must cover at least {MIN_WINDOW:g} second."
        )
    return Call(start, end, strategy)


def parse_segment(answer: str) -> Segment | str:
    """Reads a temporal grounding answer, `{"temporal_segment": [t0, t1]}`; ends are sorted. A string says what is wrong."""
    data = parse_object(answer)
    if isinstance(data, str):
        return data
    if _SEGMENT_KEY not in data:
        return f"the key {_SEGMENT_KEY!r} is missing."
    pair = _parse_pair(data[_SEGMENT_KEY])
    return pair if isinstance(pair, str) else Segment(*sorted(pair))


def format_call(call: Call, *, decimals: int | None = None) -> str:
    """The `<grounding>` block of a call. `decimals=None` writes the times so that parsing gives them back exactly."""
    return f"<grounding>{call_content(call, decimals=decimals)}{CALL_END}"


def call_content(call: Call, *, decimals: int | None = None) -> str:
    """What stands in the block; a call without a strategy is written as medium."""
    times = ", ".join(number(t, decimals) for t in (call.start, call.end))
    return f'{{"{_SEGMENT_KEY}": [{times}], "{_STRATEGY_KEY}": "{call.strategy or "medium"}"}}'


def format_answer(answer: str) -> str:
    """The `<answer>` block."""
    return f"<answer>{answer}{ANSWER_END}"


def format_segment(segment: Segment, *, decimals: int | None = None) -> str:
    """The content of a temporal grounding answer."""
    times = ", ".join(number(t, decimals) for t in (segment.start, segment.end))
    return f'{{"{_SEGMENT_KEY}": [{times}]}}'


def format_turn(think: str, block: str) -> str:
    """A whole assistant turn: the think text, then a call or answer block as made above."""
    return f"<think>{think}</think>\n{block}"


def number(value: float, decimals: int | None) -> str:
    """A number as it is written; `decimals=None`: so that reading gives it back exactly."""
    return repr(float(value)) if decimals is None else f"{value:.{decimals}f}"


def shortened(value: Any, limit: int = 60) -> str:
    """The value as JSON, cut so that an error turn stays short."""
    try:
        shown = json.dumps(value, ensure_ascii=False)
        shown.encode()  # fails on half a surrogate pair, which nothing could write
    except (
        ValueError,
        RecursionError,
    ):  # integers beyond the digit limit, nesting beyond the stack
        return "something that cannot be shown"
    return shown if len(shown) <= limit else shown[:limit] + "..."


def parse_object(content: str, example: str = _EXAMPLE) -> dict[str, Any] | str:
    """The JSON object from the first `{` to the last `}`, single quotes accepted, or what is wrong, with an example."""
    first, last = content.find("{"), content.rfind("}")
    if first < 0 or last < first:
        return f"there is no JSON object in it. Write one, like {example}."
    body = content[first : last + 1]
    for candidate in (body, body.replace("'", '"')):
        try:
            data = json.loads(candidate)
        except (
            ValueError,
            RecursionError,
        ):  # JSONDecodeError is a ValueError, and so is an integer of 5,000 digits
            continue
        return data  # it starts with a brace, so it is a dict
    return f"it is not valid JSON. Write it like {example}."


def _parse_pair(value: Any) -> tuple[float, float] | str:
    """Two finite numbers, or what is wrong."""
    if not isinstance(value, list) or len(value) != 2:
        return (
            f"{_SEGMENT_KEY} is {shortened(value)}; it must be two times in seconds, [start, end]."
        )
    times = []
    for time in value:
        # bool is an int in Python, and true is no time
        if isinstance(time, bool) or not isinstance(time, int | float):
            return f"{_SEGMENT_KEY} holds {shortened(time)}, which is not a number. Write seconds, like 12.5."
        try:
            times.append(float(time))
        except OverflowError:
            times.append(math.inf)
        if not math.isfinite(times[-1]):
            return f"{_SEGMENT_KEY} holds a time that is not a finite number. Write seconds, like 12.5."
    return times[0], times[1]
