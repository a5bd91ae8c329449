"""Tool trajectories of other projects, read and written: LongVT (`crop_video` calls) and VideoZoomer (`video_zoom` calls).

Both ways where the formats allow. What a format has no place for is named: `Converted.lost` lists it, row by row, so that
nothing is dropped in silence. How a call is written stands in `vo3.chat.dialects`; as their repositories document their rows:

  longvt       chat turns; what a look shows comes back in a turn of role `tool`. No sampling strategy.
  videozoomer  chat turns; what a look shows comes back in a user turn. The rate takes the place of the strategy.

    python -m data_prep.dialects SRC DST --from video-o3 --to longvt
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

from etils import epath

from data_prep.store import write_lines
from vo3 import json_line
from vo3.chat.dialects import DIALECTS as AGENTS
from vo3.chat.dialects import Dialect as Agent
from vo3.chat.dialects import longvt, videozoomer
from vo3.chat.dialects.videozoomer import RATES, strategy_of
from vo3.chat.tags import format_answer, format_turn
from vo3.data.files import RowFiles
from vo3.data.seeker import sft_trajectory
from vo3.trajectory import VIDEO_MARK, Call, Observation, Strategy, Trajectory

Dialect = Literal["video-o3", "longvt", "videozoomer"]
DIALECTS: tuple[Dialect, ...] = get_args(Dialect)

_OWN, _LONGVT, _ZOOMER = (AGENTS[name] for name in DIALECTS)
_TOOL_CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)
_ZOOM = re.compile(r"<video_zoom>\s*(.*?)\s*</video_zoom>", re.DOTALL)
_THINK = re.compile(r"<think>(.*?)</think>", re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
# A bound on what a row may claim, where it does not tell the video's length.
_ANY_LENGTH = 1e9


class DialectError(ValueError):
    """A row that does not read as its dialect."""


@dataclasses.dataclass(frozen=True)
class Turn:
    """What every dialect has: a think text, then a look or an answer. `window` in seconds, `rate` in frames per second."""

    think: str
    window: tuple[float, float] | None = None
    strategy: Strategy | None = None
    rate: float | None = None
    answer: str | None = None


@dataclasses.dataclass(frozen=True)
class Conversation:
    """A row between two dialects.

    Attributes:
      id, video, question: of the row; the question as shown, options and all.
      turns: the assistant's.
      system: the system prompt, empty where there is none.
    """

    id: str
    video: str
    question: str
    turns: tuple[Turn, ...]
    system: str = ""


@dataclasses.dataclass(frozen=True)
class Converted:
    """A row in another dialect, and what that dialect has no place for."""

    row: dict[str, Any]
    lost: tuple[str, ...]


def convert(row: Mapping[str, Any], *, source: Dialect, target: Dialect) -> Converted:
    """A row in another dialect. `video-o3` rows are Seeker's SFT rows, or trajectories of this project.

    Raises:
      DialectError: the row does not read as `source`.
    """
    conversation, before = _READ[source](row)
    written, after = _WRITE[target](conversation)
    return Converted(written, (*before, *after))


# ---- Video-o3


def _read_own(row: Mapping[str, Any]) -> tuple[Conversation, tuple[str, ...]]:
    try:
        trajectory = sft_trajectory(row)
    except ValueError as error:
        raise DialectError(str(error)) from error
    agent = AGENTS.get(trajectory.meta.get("dialect", ""), _OWN)
    turns, lost = [], []
    for turn in trajectory.turns:
        if turn.kind in ("error", "forced"):
            lost.append(f"{turn.kind} turn")
        if turn.role != "assistant":
            continue
        parsed = agent.parse(turn.text, _ANY_LENGTH)
        call = turn.call or parsed.call
        if parsed.kind == "text" or (parsed.kind == "call" and call is None):
            lost.append("malformed assistant turn")
            continue
        window = (call.start, call.end) if call else None
        how = (call.strategy, call.fps) if call else (None, None)
        turns.append(Turn(parsed.think or "", window, *how, parsed.answer))
    video = trajectory.task.video
    if not isinstance(video, str):
        raise DialectError(
            f"{trajectory.task.id}: a list of frames; the other dialects name one file"
        )
    question = next(t.text for t in trajectory.turns if t.kind == "question")
    system = next((t.text for t in trajectory.turns if t.kind == "system"), "")
    lost += _own_extras(trajectory)
    return Conversation(trajectory.task.id, video, _plain(question), tuple(turns), system), tuple(
        lost
    )


def _own_extras(trajectory: Trajectory) -> list[str]:
    lost = []
    if trajectory.task.target is not None and trajectory.task.target.clues:
        lost.append("true clues")
    if trajectory.meta.get("synthesis"):
        lost.append("provenance")
    if any(isinstance(o, Observation) and o.indices for o in trajectory.observations):
        lost.append("frame times")
    return lost


def _write_own(conversation: Conversation) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A Seeker SFT row."""
    videos: list[dict[str, Any]] = [{"url": conversation.video, "crop": [-1, -1], "sample": None}]
    messages = [{"role": "user", "content": f"{VIDEO_MARK}\n{conversation.question}"}]
    lost = []
    for number, turn in enumerate(conversation.turns, start=1):
        if turn.window is None:
            text = format_turn(turn.think, format_answer(turn.answer or ""))
            messages.append({"role": "assistant", "content": text})
            continue
        strategy = turn.strategy or strategy_of(turn.rate)
        if turn.strategy is None and turn.rate is not None and turn.rate != RATES[strategy]:
            lost.append("exact rate")
        text = format_turn(turn.think, _OWN.format_call(Call(*turn.window, strategy)))
        messages.append({"role": "assistant", "content": text})
        shown = f"Observation {number}: {VIDEO_MARK}"
        messages.append({"role": "user", "content": shown})
        videos.append({"url": conversation.video, "crop": list(turn.window), "sample": strategy})
    row = {
        "id": conversation.id,
        "system": conversation.system,
        "messages": messages,
        "videos": videos,
    }
    return row, tuple(lost)


# ---- LongVT


def _read_longvt(row: Mapping[str, Any]) -> tuple[Conversation, tuple[str, ...]]:
    name, messages = _messages(row)
    turns, video = [], row.get("video") if isinstance(row.get("video"), str) else ""
    for text in (m["content"] for m in messages if m["role"] == "assistant"):
        text = _text(text)
        calls = _TOOL_CALL.findall(text)
        # One text may hold several rounds: each look ends one.
        pieces = _TOOL_CALL.split(text) if calls else [text]
        for number in range(0, len(pieces), 2):
            think = _first(_THINK, pieces[number])
            if number + 1 < len(pieces):
                call = _read_call(_LONGVT, pieces[number + 1], name)
                video = video or longvt.LongVT.path(pieces[number + 1])
                turns.append(Turn(think, (call.start, call.end)))
            elif (answer := _ANSWER.findall(pieces[number])) or think:
                turns.append(Turn(think, answer=answer[-1].strip() if answer else ""))
    video = video or next((p for p in _video_parts(messages)), "")
    return _conversation(name, video, messages, turns), ()


def _read_call(agent: Agent, content: str, name: str) -> Call:
    call = agent.read_call(content, _ANY_LENGTH)
    if isinstance(call, str):
        raise DialectError(f"{name}: no call of {agent.name}: {call} It is {content[:80]!r}")
    return call


def _write_longvt(conversation: Conversation) -> tuple[dict[str, Any], tuple[str, ...]]:
    def call(turn: Turn, window: tuple[float, float]) -> tuple[str, str | None]:
        lost = turn.strategy is not None or turn.rate is not None
        text = _LONGVT.format_call(Call(*window, None), video=conversation.video)
        return text, "sampling strategy" if lost else None

    return _written(conversation, call, shown="tool")


# ---- VideoZoomer


def _read_zoomer(row: Mapping[str, Any]) -> tuple[Conversation, tuple[str, ...]]:
    name, messages = _messages(row)
    turns = []
    for text in (_text(m["content"]) for m in messages if m["role"] == "assistant"):
        think, zoom = _first(_THINK, text), _ZOOM.findall(text)
        if zoom:
            call = _read_call(_ZOOMER, zoom[-1], name)
            turns.append(Turn(think, (call.start, call.end), rate=call.fps))
        else:
            answer = _ANSWER.findall(text)
            turns.append(Turn(think, answer=_ZOOMER.read_answer(answer[-1]) if answer else ""))
    video = row.get("video") or next(iter(row.get("videos") or ()), "")
    video = video if isinstance(video, str) else str(video.get("url", ""))
    return _conversation(name, video, messages, turns), ()


def _write_zoomer(conversation: Conversation) -> tuple[dict[str, Any], tuple[str, ...]]:
    def call(turn: Turn, window: tuple[float, float]) -> tuple[str, str | None]:
        start, end = window
        rate, lost = turn.rate, None
        if rate is None:
            rate = RATES[turn.strategy or "medium"]
        if videozoomer.frames(start, end, rate) > videozoomer.MAX_FRAMES:
            rate = videozoomer.MAX_FRAMES / (end - start)
            lost = "sampling strategy (more than 16 frames)"
        return _ZOOMER.format_call(Call(start, end, None, rate)), lost

    return _written(conversation, call, shown="user")


_READ = {"video-o3": _read_own, "longvt": _read_longvt, "videozoomer": _read_zoomer}
_WRITE = {"video-o3": _write_own, "longvt": _write_longvt, "videozoomer": _write_zoomer}


# ---- parts of rows


def _written(
    conversation: Conversation,
    call_of: Callable[[Turn, tuple[float, float]], tuple[str, str | None]],
    *,
    shown: str,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Messages whose calls are what `call_of` makes of a turn and its window, beside what is lost; clips come with the role `shown`."""
    messages: list[dict[str, Any]] = []
    if conversation.system:
        messages.append({"role": "system", "content": conversation.system})
    messages.append({"role": "user", "content": f"{VIDEO_MARK}\n{conversation.question}"})
    lost = []
    for turn in conversation.turns:
        if turn.window is None:
            text = format_turn(turn.think, format_answer(turn.answer or ""))
            messages.append({"role": "assistant", "content": text})
            continue
        call, missing = call_of(turn, turn.window)
        lost += [missing] if missing else []
        messages.append({"role": "assistant", "content": format_turn(turn.think, call)})
        messages.append({"role": shown, "content": VIDEO_MARK})
    row = {"id": conversation.id, "video": conversation.video, "messages": messages}
    return row, tuple(lost)


def _messages(row: Mapping[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    name = str(row.get("id") or "row")
    messages = row.get("messages")
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise DialectError(f"{name}: no messages")
    if not all(isinstance(m, Mapping) and {"role", "content"} <= set(m) for m in messages):
        raise DialectError(f"{name}: a message without role or content")
    return name, [dict(m) for m in messages]


def _conversation(
    name: str, video: str, messages: list[dict[str, Any]], turns: list[Turn]
) -> Conversation:
    if not video:
        raise DialectError(f"{name}: no video is named")
    if not turns or turns[-1].answer is None:
        raise DialectError(f"{name}: the last turn has no answer")
    question = next((_text(m["content"]) for m in messages if m["role"] == "user"), "")
    system = next((_text(m["content"]) for m in messages if m["role"] == "system"), "")
    return Conversation(name, video, _plain(question), tuple(turns), system)


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = [p.get("text", "") for p in content if isinstance(p, Mapping)]
    return "\n".join(part for part in parts if part)


def _video_parts(messages: list[dict[str, Any]]) -> list[str]:
    parts = [p for m in messages if isinstance(m["content"], list) for p in m["content"]]
    found = [p.get("video") or (p.get("video_url") or {}).get("url") for p in parts if isinstance(p, Mapping)]  # fmt: skip
    return [v for v in found if isinstance(v, str)]


def _plain(question: str) -> str:
    return question.replace(VIDEO_MARK, "").strip()


def _first(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.findall(text)
    return "\n".join(part.strip() for part in found)


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", metavar="SRC", help="json, jsonl or parquet")
    parser.add_argument("target", metavar="DST.jsonl")
    parser.add_argument("--from", dest="read", choices=DIALECTS, required=True)
    parser.add_argument("--to", dest="write", choices=DIALECTS, required=True)
    args = parser.parse_args(argv)
    lost: collections.Counter = collections.Counter()
    broken = 0

    def lines():
        nonlocal broken
        rows = RowFiles(args.source)
        for index in range(len(rows)):
            try:
                converted = convert(rows[index], source=args.read, target=args.write)
            except ValueError as error:
                broken += 1
                print(f"dialects: {rows.describe(index)}: {error}", file=sys.stderr)
                continue
            lost.update(set(converted.lost))
            yield json_line.dumps(converted.row)

    try:
        count = write_lines(epath.Path(args.target), lines())
    except OSError as error:
        parser.error(str(error))
    print(f"{count} rows written to {args.target}, {broken} did not read as {args.read}")
    for what, rows_lost in lost.most_common():
        print(f"  no place in {args.write}: {what}, in {rows_lost} rows")
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
