"""Video-o3, the default: see `vo3.chat.tags`."""

from __future__ import annotations

from vo3.chat import tags
from vo3.chat.dialects.base import Dialect, Limits
from vo3.trajectory import Call


class VideoO3(Dialect):
    r"""`<think>...</think>\n<grounding>{"temporal_segment": [t0, t1], "sampling_strategy": "fine"}</grounding>`."""

    name = "video-o3"
    tag = "grounding"
    pack = "default"
    recipe = "eval"
    eval_limits = Limits(
        max_turns=8,
        force_answer=True,
        stop=(tags.CALL_END, tags.ANSWER_END),
        max_new_tokens=4096,
    )
    rl_limits = Limits(max_turns=6, force_answer=False, stop=(tags.CALL_END,), max_new_tokens=8192)

    def read_call(self, content: str, duration: float) -> Call | str:
        """See `Dialect.read_call`."""
        return tags.parse_call(content, duration)

    def write_call(self, call: Call, *, video: str = "", decimals: int | None = None) -> str:
        """See `Dialect.write_call`; a call of another dialect without a strategy is written as medium."""
        return tags.call_content(call, decimals=decimals)
