"""Rows of Seeker-173K's formats: SFT rows to `Trajectory`, RL rows to `Task`.

SFT (sharegpt style):

    {"id", "system", "messages": [{"role": "user" | "assistant", "content"}], "videos": [...]}

as many `<video>` marks in user turns as videos; a video is a path, a list of frame files, or `{"url", "crop": [t0, t1] |
[-1, -1], "sample": "coarse" | "medium" | "fine" | "old_quota" | null}`; video 0 is the whole video. `conversations` with
`from` and `value` is read too, and so are trajectories that this project wrote (`schema_version`).

RL:

    {"doc_id" | "id", "data_source", "problem" | "question", "options", "video", "frame_fps",
     "solution": {"answer", "clue": [{"timestamp": [t0, t1], "text"}]}}

In Parquet a nested column may hold JSON text. A row that breaks a rule raises `RowError`, which names the row, the rule and
the reason. Whether a window lies inside its video is known only once the video is: `vo3.data.lengths` sees to it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from vo3.chat.tags import parse_turn
from vo3.data.clips import SAMPLES, ClipRef, open_observation, with_refs
from vo3.data.files import RowFiles
from vo3.data.rejects import Rejects, RowError
from vo3.data.row_parts import (
    check_target,
    first_of,
    nested,
    options_of,
    rate_of,
    row_id,
    video_of,
    window_of,
)
from vo3.rewards import DATA_SOURCES, target_from_row
from vo3.trajectory import IMAGE_MARK, VIDEO_MARK, Task, Trajectory, Turn

_ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "system": "system",
}
_MESSAGE_KEYS = (("messages", "role", "content"), ("conversations", "from", "value"))
# Frames in a list are taken as the sample itself: 2 a second, as a video would be sampled.
SFT_FRAME_FPS = 2.0
RL_FRAME_FPS = 4.0


def read_sft(
    path: epath.PathLike | Sequence[epath.PathLike],
    *,
    videos: epath.PathLike | None = None,
    frame_fps: float = SFT_FRAME_FPS,
    rejects: Rejects | None = None,
) -> Iterator[Trajectory]:
    """Trajectories of the good rows, in order.

    Args:
      path: see `vo3.data.files.RowFiles`.
      videos: folder that relative video paths start from.
      frame_fps: rate of frame lists whose row does not give one.
      rejects: where bad rows are noted.

    Raises:
      RowError: a bad row, when there is no `rejects`.
    """
    rows = RowFiles(path)
    return _read(
        rows, lambda i: sft_trajectory(rows[i], rows.describe(i), videos=videos, frame_fps=frame_fps), rejects
    )  # fmt: skip


def read_rl(
    path: epath.PathLike | Sequence[epath.PathLike],
    *,
    videos: epath.PathLike | None = None,
    data_sources: Collection[str] = DATA_SOURCES,
    rejects: Rejects | None = None,
) -> Iterator[Task]:
    """Tasks of the good rows, in order; arguments and errors as for `read_sft`."""
    rows = RowFiles(path)
    return _read(
        rows, lambda i: rl_task(rows[i], rows.describe(i), videos=videos, data_sources=data_sources), rejects
    )  # fmt: skip


def _read(rows: RowFiles, make: Any, rejects: Rejects | None) -> Iterator[Any]:
    if rejects is not None:
        rejects.total += len(rows)
    for index in range(len(rows)):
        try:
            item = make(index)
        except RowError as error:
            if rejects is None:
                raise
            rejects.add(index, error)
            continue
        yield item


def sft_trajectory(
    row: Mapping[str, Any],
    name: str = "row",
    *,
    videos: epath.PathLike | None = None,
    frame_fps: float = SFT_FRAME_FPS,
) -> Trajectory:
    """The trajectory of an SFT row. Its observations are open: `vo3.data.clips` says what to read for them.

    Args:
      row: the row.
      name: what to call it when it has no id.
      videos: folder that relative video paths start from.
      frame_fps: rate of frame lists when the row gives none.

    Raises:
      RowError: the row breaks a rule.
    """
    id_ = row_id(row, name)
    if "schema_version" in row:
        return _own(row, id_, videos)
    fps = rate_of(row, id_) or frame_fps
    system, messages = _messages(row, id_)
    refs = _clip_refs(row, id_, videos, fps)
    turns = _turns(messages, refs, id_)
    if system:
        if VIDEO_MARK in system or IMAGE_MARK in system:
            raise RowError(id_, "marks", "the system prompt holds a media mark")
        turns = (Turn("system", system), *turns)
    first, last = refs[0], turns[-1]
    question = next(t.text for t in turns if t.kind == "question")
    task = Task(
        id=id_,
        video=first.video,
        question=question.replace(VIDEO_MARK, "").strip(),
        frame_fps=first.frame_fps,
    )
    source = row.get("data_source")
    trajectory = Trajectory(
        task=task,
        turns=turns,
        outcome="answered" if last.kind == "answer" else "text",
        answer=last.answer if last.kind == "answer" else last.text,
        meta={"data_source": source} if isinstance(source, str) and source else {},
    )
    return with_refs(trajectory, refs)


def rl_task(
    row: Mapping[str, Any],
    name: str = "row",
    *,
    videos: epath.PathLike | None = None,
    data_sources: Collection[str] = DATA_SOURCES,
) -> Task:
    """The task of an RL row; arguments as for `sft_trajectory`.

    Raises:
      RowError: the row breaks a rule.
    """
    id_ = row_id(row, name)
    question = first_of(row, ("problem", "question"))
    if not isinstance(question, str) or not question.replace(VIDEO_MARK, "").strip():
        raise RowError(id_, "fields", "neither 'problem' nor 'question' holds text")
    source = row.get("data_source")
    if not isinstance(source, str) or source not in data_sources:
        raise RowError(
            id_, "source", f"unknown data_source {source!r}; known are {sorted(data_sources)}"
        )
    parsed = {**row, "solution": nested(row.get("solution"))}
    try:
        target = target_from_row(parsed)
    except (ValueError, TypeError) as error:
        raise RowError(id_, "fields", str(error)) from error
    options = options_of(nested(row.get("options")), id_)
    check_target(target, options, id_)
    video = video_of(nested(row.get("video")), "video", id_, videos)
    fps = rate_of(row, id_)
    if isinstance(video, tuple):
        fps = fps or RL_FRAME_FPS
    return Task(
        id=id_,
        video=video,
        question=question.replace(VIDEO_MARK, "").strip(),
        options=options,
        target=target,
        frame_fps=fps,
    )


# ---- parts of a row


def _own(row: Mapping[str, Any], id_: str, videos: epath.PathLike | None) -> Trajectory:
    """A trajectory that this project wrote."""
    try:
        trajectory = Trajectory.from_json(dict(row))
    except ValueError as error:
        raise RowError(id_, "fields", str(error)) from error
    id_ = trajectory.task.id
    if not any(turn.role == "assistant" for turn in trajectory.turns):
        raise RowError(id_, "roles", "no assistant turn")
    if videos is None:
        return trajectory
    video = video_of(trajectory.task.video, "task.video", id_, videos)
    task = Task(**{**vars(trajectory.task), "video": video})
    return Trajectory(**{**vars(trajectory), "task": task})


def _messages(row: Mapping[str, Any], id_: str) -> tuple[str, list[tuple[str, str]]]:
    """The system prompt and (role, text) of the turns, which take turns."""
    key, role_key, text_key = next(
        (keys for keys in _MESSAGE_KEYS if row.get(keys[0]) is not None), _MESSAGE_KEYS[0]
    )
    entries = nested(row.get(key))
    if not isinstance(entries, list) or not entries:
        raise RowError(id_, "fields", "'messages' (or 'conversations') is not a list of turns")
    system = row.get("system") or ""
    if not isinstance(system, str):
        raise RowError(id_, "fields", f"'system' is a {type(system).__name__}, not text")
    turns: list[tuple[str, str]] = []
    for i, entry in enumerate(entries):
        if not isinstance(entry, Mapping) or not isinstance(entry.get(text_key), str):
            raise RowError(id_, "fields", f"{key}[{i}] has no text under {text_key!r}")
        role, text = _ROLES.get(str(entry.get(role_key))), entry[text_key]
        if role is None:
            raise RowError(
                id_, "roles",
                f"{key}[{i}] has the role {entry.get(role_key)!r}; known are {', '.join(_ROLES)}",
            )  # fmt: skip
        if role == "system":
            if i or (system and system != text):
                raise RowError(id_, "roles", f"{key}[{i}] is a second system prompt")
            system = text
            continue
        wanted = "assistant" if len(turns) % 2 else "user"
        if role != wanted:
            raise RowError(
                id_, "roles", f"{key}[{i}] is the {role}'s where it is the {wanted}'s turn"
            )
        turns.append((role, text))
    if not turns or turns[-1][0] != "assistant":
        raise RowError(id_, "roles", "the last turn is not the assistant's")
    return system, turns


def _turns(
    messages: Sequence[tuple[str, str]], refs: Sequence[ClipRef], id_: str
) -> tuple[Turn, ...]:
    marks = sum(text.count(VIDEO_MARK) for role, text in messages if role == "user")
    if marks != len(refs):
        raise RowError(id_, "marks", f"{marks} {VIDEO_MARK} marks for {len(refs)} videos")
    if VIDEO_MARK not in messages[0][1]:
        raise RowError(id_, "marks", "the question does not show the video")
    turns: list[Turn] = []
    shown = 0
    for i, (role, text) in enumerate(messages):
        if IMAGE_MARK in text:
            raise RowError(id_, "marks", f"turn {i} holds {IMAGE_MARK}, and rows have no images")
        if role == "assistant":
            turns.append(_assistant(text, i, id_))
            continue
        count = text.count(VIDEO_MARK)
        observations = tuple(open_observation(k, refs[k]) for k in range(shown, shown + count))
        shown += count
        kind = "question" if i == 0 else "observation" if count else "error"
        error = text if kind == "error" else None
        turns.append(Turn(kind, text, observations=observations, error=error))
    if turns[-1].kind == "call":
        raise RowError(id_, "roles", "the last turn is a call, and nothing answers the question")
    return tuple(turns)


def _assistant(text: str, i: int, id_: str) -> Turn:
    if not text.strip():
        raise RowError(id_, "fields", f"turn {i}, the assistant's, is empty")
    if VIDEO_MARK in text:
        raise RowError(id_, "marks", f"turn {i}, the assistant's, holds {VIDEO_MARK}")
    # How long the video is, is not known yet: windows are cut to it when it is.
    parsed = parse_turn(text, math.inf)
    return Turn(parsed.kind, text, call=parsed.call, answer=parsed.answer, error=parsed.error)


def _clip_refs(
    row: Mapping[str, Any], id_: str, root: epath.PathLike | None, fps: float
) -> tuple[ClipRef, ...]:
    entries = nested(row.get("videos"))
    if entries is None and row.get("video") is not None:
        entries = [row["video"]]
    if isinstance(entries, (str, Mapping)):
        entries = [entries]
    if not isinstance(entries, list) or not entries:
        raise RowError(id_, "videos", "'videos' is not a list of videos")
    refs = []
    for i, entry in enumerate(entries):
        entry, where = nested(entry), f"videos[{i}]"
        window, sample = None, None
        if isinstance(entry, Mapping):
            if unknown := sorted(set(entry) - {"url", "crop", "sample"}):
                raise RowError(id_, "videos", f"{where} has the unknown keys {unknown}")
            window = window_of(nested(entry.get("crop")), where, id_)
            sample = entry.get("sample") or None
            if sample not in SAMPLES:
                known = ", ".join(str(s) for s in SAMPLES if s)
                raise RowError(
                    id_, "sample", f"{where} has the sample {sample!r}; known are {known} and null"
                )
            entry = nested(entry.get("url"))
        if i == 0 and window is not None:
            raise RowError(
                id_,
                "window",
                f"{where} is cut to {list(window)}, and the first video is the whole one",
            )
        video = video_of(entry, where, id_, root)
        rate = fps if isinstance(video, tuple) or row.get("frame_fps") else None
        refs.append(ClipRef(video, window, sample, rate, clips=max(1, len(entries) - 1)))
    return tuple(refs)
