"""VideoZoomer: looks at a rate that the call asks for, at most 16 frames.

    <think>...</think>\\n<video_zoom>{"segment": [t0, t1], "fps": F}</video_zoom>
    <think>...</think>\\n<answer>...</answer>                       the answer in \\\\boxed{} or plain

What a call shows comes back as pictures, each behind its number and time, in a user turn. Source: zsgvivo/VideoZoomer at 5638153
(multi-turn rollout, clip reader, evaluation script: 5 turns of which the last must answer, 49,152 tokens of prompt and 32,768 of
response, 4,096 in a turn).

Departures: frames are counted over the part of the window that lies in the video; a window that would show no frame is an error turn
(there, it shows an empty clip); frames are resized with bicubic, not Lanczos.
"""

from __future__ import annotations

import re

from vo3.chat import tags
from vo3.chat.dialects.base import Dialect, Limits, seconds
from vo3.trajectory import Call, Strategy

MAX_FRAMES = 16
# Rates that stand for the strategies of Video-o3 in converted trajectories.
RATES: dict[Strategy, float] = {"coarse": 0.5, "medium": 1.0, "fine": 2.0}
_EXAMPLE = '{"segment": [12.0, 20.0], "fps": 2}'
_BOXED = re.compile(r"\\boxed\{(.*)\}", re.DOTALL)


class VideoZoomer(Dialect):
    """See the module."""

    name = "videozoomer"
    tag = "video_zoom"
    pack = "videozoomer"
    recipe = "videozoomer"
    eval_limits = Limits(
        max_turns=4,
        force_answer=True,
        stop=("</video_zoom>",),
        max_new_tokens=4096,
        max_length=49_152 + 32_768,
    )
    rl_limits = Limits(
        max_turns=4,
        force_answer=True,
        stop=("</video_zoom>",),
        max_new_tokens=4096,
        max_length=49_152 + 32_768,
    )

    def read_call(self, content: str, duration: float) -> Call | str:
        """See `Dialect.read_call`."""
        data = tags.parse_object(content, _EXAMPLE)
        if isinstance(data, str):
            return data
        missing = [key for key in ("segment", "fps") if key not in data]
        if missing:
            return f"the key {' and the key '.join(map(repr, missing))} is missing. Write both, like {_EXAMPLE}."
        segment = data["segment"]
        if not isinstance(segment, list) or len(segment) != 2:
            return f"segment is {tags.shortened(segment)}; it must be two times in seconds, [start, end]."
        start, end, rate = (
            seconds(value, name)
            for value, name in (
                (segment[0], "segment"),
                (segment[1], "segment"),
                (data["fps"], "fps"),
            )
        )
        for value in (start, end, rate):
            if isinstance(value, str):
                return value
        if not rate > 0:
            return f"fps is {rate:g}; it must be above 0."
        if end <= start:
            return f"the segment [{start:g}, {end:g}] does not end after it starts."
        if start >= duration or end <= 0:
            return f"the segment [{start:g}, {end:g}] lies outside the video, which lasts from 0 to {duration:g} seconds."
        if frames(start, end, rate) > MAX_FRAMES:
            return (
                f"{end - start:g} seconds at {rate:g} frames per second are {frames(start, end, rate)} frames; at most {MAX_FRAMES} are "
                "shown. Choose a shorter segment or a lower fps."
            )
        start, end = max(start, 0.0), min(end, float(duration))
        if frames(start, end, rate) < 1:
            return f"{end - start:g} seconds of the video at {rate:g} frames per second show no frame. Choose a higher fps."
        return Call(start, end, None, rate)

    def write_call(self, call: Call, *, video: str = "", decimals: int | None = None) -> str:
        """See `Dialect.write_call`; a strategy is written as the rate that stands for it."""
        times = ", ".join(tags.number(time, decimals) for time in (call.start, call.end))
        rate = call.fps if call.fps is not None else RATES[call.strategy or "medium"]
        return f'{{"segment": [{times}], "fps": {tags.number(rate, None)}}}'

    def read_answer(self, content: str) -> str:
        """See `Dialect.read_answer`."""
        boxed = _BOXED.search(content)
        return (boxed[1] if boxed else content).strip()


def frames(start: float, end: float, rate: float) -> int:
    """Frames that a look of `rate` frames per second shows."""
    return int(min(rate * (end - start), 1e9))


def strategy_of(rate: float | None) -> Strategy:
    """The strategy whose rate is nearest; medium where there is no rate."""
    if rate is None:
        return "medium"
    return min(RATES, key=lambda strategy: abs(RATES[strategy] - rate))
