"""LongVT: function calls of a tool `crop_video` at one frame a second, in the form that Qwen2.5's chat template gives them.

    <think>...</think>\\n<tool_call>{"name": "crop_video", "arguments": {"video_path": "...", "start_time": t0, "end_time": t1}}</tool_call>
    <think>...</think>\\n<answer>...</answer>

What a call shows comes back as pictures in `<tool_response>`, in a user turn. Source: EvolvingLMMs-Lab/LongVT at 08d755b (tool server,
single-inference script, RL settings: 5 rounds, 36,000 tokens of prompt and 16,384 of response).

Departures: a turn stops at `</tool_call>` (there, several calls may stand in one turn and are carried out together); an end beyond
the video is cut to it (their server refuses it, their script cuts it); the path in a call is not read, as there is one video; at the
last round the answer is asked for (there, the rollout ends without one).
"""

from __future__ import annotations

import json

from vo3.chat import tags
from vo3.chat.dialects.base import Dialect, Limits, seconds
from vo3.trajectory import Call

TOOL = "crop_video"
_EXAMPLE = '{"name": "crop_video", "arguments": {"video_path": "...", "start_time": 12.0, "end_time": 20.0}}'


class LongVT(Dialect):
    """See the module."""

    name = "longvt"
    tag = "tool_call"
    pack = "longvt"
    recipe = "longvt"
    eval_limits = Limits(
        max_turns=5,
        force_answer=True,
        stop=("</tool_call>",),
        max_new_tokens=4096,
        max_length=128_000,
    )
    rl_limits = Limits(
        max_turns=5,
        force_answer=False,
        stop=("</tool_call>",),
        max_new_tokens=16_384,
        max_length=36_000 + 16_384,
    )

    def read_call(self, content: str, duration: float) -> Call | str:
        """See `Dialect.read_call`."""
        arguments = _arguments(content)
        if isinstance(arguments, str):
            return arguments
        missing = [key for key in ("start_time", "end_time") if key not in arguments]
        if missing:
            return f"the argument {' and the argument '.join(map(repr, missing))} is missing. Write it like {_EXAMPLE}."
        start, end = (seconds(arguments[key], key) for key in ("start_time", "end_time"))
        for time in (start, end):
            if isinstance(time, str):
                return time
        if start < 0:
            return f"start_time is {start:g}; it must not be negative."
        if end <= start:
            return f"end_time {end:g} is not after start_time {start:g}."
        if start >= duration:
            return f"start_time {start:g} lies beyond the video, which lasts {duration:g} seconds."
        return Call(start, min(end, float(duration)), None)

    def write_call(self, call: Call, *, video: str = "", decimals: int | None = None) -> str:
        """See `Dialect.write_call`; a strategy or rate has no place in it."""
        path = json.dumps(video, ensure_ascii=False)
        start, end = (tags.number(time, decimals) for time in (call.start, call.end))
        return f'{{"name": "{TOOL}", "arguments": {{"video_path": {path}, "start_time": {start}, "end_time": {end}}}}}'

    @staticmethod
    def path(content: str) -> str:
        """The path that a call names; empty where it names none."""
        arguments = _arguments(content)
        return "" if isinstance(arguments, str) else str(arguments.get("video_path", ""))


def _arguments(content: str) -> dict | str:
    """The arguments of a call of the tool, or what is wrong with it."""
    data = tags.parse_object(content, _EXAMPLE)
    if isinstance(data, str):
        return data
    if data.get("name") != TOOL:
        return f"there is no tool {tags.shortened(data.get('name'))}; the only one is {TOOL}."
    arguments = data.get("arguments")
    if isinstance(arguments, str):
        arguments = tags.parse_object(arguments, _EXAMPLE)
        return arguments if isinstance(arguments, dict) else f"its arguments: {arguments}"
    if not isinstance(arguments, dict):
        return f"its arguments are {tags.shortened(arguments)}. Write it like {_EXAMPLE}."
    return arguments
