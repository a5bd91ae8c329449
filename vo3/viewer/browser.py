"""All trajectories of one or two files on one self-contained page: a list with filters, and the trajectory chosen beside it.

The page carries its data as JSON and draws the rows that are in sight, so that thousands of trajectories open and filter at once. Of the first trajectories it
has small pictures; their own pages, with all frames, are linked.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vo3.rewards import score
from vo3.rewards.grounding import Interval, overlap
from vo3.trajectory import Trajectory, Turn
from vo3.video import Clip
from vo3.viewer.markup import Markup, tag
from vo3.viewer.page import OUTCOMES, document, judge, video_name, window_iou
from vo3.viewer.pictures import data_uri
from vo3.viewer.story import think_of
from vo3.viewer.timeline import duration_of

# Small pictures of one observation on the page.
OVERVIEW_FRAMES, CLIP_FRAMES = 12, 4


def iou_of(trajectory: Trajectory) -> float | None:
    """IoU with the true windows, merged: of the window answered where one is asked for, else of all windows looked at. None where either is missing."""
    if (iou := window_iou(trajectory)) is not None:
        return iou
    target = trajectory.task.target
    if target is None or not target.clues:
        return None
    met = overlap(
        [Interval(call.start, call.end) for call in trajectory.calls],
        [Interval(clue.start, clue.end) for clue in target.clues],
    )
    return None if met is None else met.iou


def reward_of(trajectory: Trajectory) -> dict[str, float] | None:
    """The parts of the training reward; None where the data source has none."""
    target = trajectory.task.target
    if target is None:
        return None
    try:
        parts = score(trajectory, target)
    except ValueError:  # a benchmark's question: no reward is defined for it
        return None
    names = ("accuracy", "format", "bonus", "grounding", "total")
    return {name: round(float(getattr(parts, name)), 4) for name in names}


def brief(trajectory: Trajectory) -> dict[str, Any]:
    """What the list and its filters show of a trajectory, as plain JSON."""
    iou = iou_of(trajectory)
    failure = trajectory.meta.get("failure")
    return {
        "id": trajectory.task.id,
        "question": trajectory.task.question,
        "answer": trajectory.answer,
        "right": judge(trajectory),
        "outcome": trajectory.outcome,
        "said": OUTCOMES[trajectory.outcome],
        "category": category_of(trajectory),
        "video": video_name(trajectory.task),
        "calls": len(trajectory.calls),
        "iou": None if iou is None else round(iou, 4),
        "failure": None if failure is None else f"{failure['kind']}: {failure['message']}",
    }


def record(
    trajectory: Trajectory,
    *,
    page: str | None = None,
    clips: Mapping[int, Clip] | None = None,
) -> dict[str, Any]:
    """What the page knows of a trajectory, as plain JSON.

    Args:
      trajectory: to show.
      page: of the trajectory alone, with its frames.
      clips: observation index -> its frames; a few of each go onto the page as small pictures.
    """
    task, target = trajectory.task, trajectory.task.target
    return brief(trajectory) | {
        "options": task.options or {},
        "true": target.answer if target else None,
        "duration": round(duration_of(trajectory), 3),
        "clues": [[c.start, c.end] for c in target.clues] if target else [],
        "looks": [[o.start, o.end, o.strategy, o.tokens] for o in trajectory.observations[1:] if o.media == "video"],
        "tokens": sum(o.tokens for o in trajectory.observations),
        "seconds": trajectory.meta.get("seconds"),
        "reward": reward_of(trajectory),
        "turns": [_turn(turn) for turn in trajectory.turns if turn.kind not in ("system", "question")],
        "page": page,
        "frames": {str(index): _thumbnails(clip, index) for index, clip in (clips or {}).items()},
    }  # fmt: skip


def _thumbnails(clip: Clip, index: int) -> list[list[Any]]:
    """[seconds, data URI] of some frames, evenly spread: more of the overview, larger ones of a clip."""
    count, width = (OVERVIEW_FRAMES, 120) if index == 0 else (CLIP_FRAMES, 200)
    chosen = np.unique(np.linspace(0, len(clip.times) - 1, count).round().astype(int))
    return [[round(float(clip.times[i]), 2), data_uri(clip.frames[i], width=width)] for i in chosen]


def category_of(trajectory: Trajectory) -> str:
    """The quadrant of training data, or a benchmark's part: what stands before the last `/` or `-` of the id."""
    target = trajectory.task.target
    if target is not None and target.data_source:
        return target.data_source
    head, slash, last = trajectory.task.id.rpartition("/")
    part = last.rpartition("-")[0] if head else ""
    return f"{head}/{part}" if slash and part else head


def _turn(turn: Turn) -> list[Any]:
    """[kind, think, what was called, shown, refused or answered]."""
    if turn.kind == "call" and turn.call is not None:
        return ["call", think_of(turn), [turn.call.start, turn.call.end, turn.call.how]]
    if turn.role == "assistant":
        think = think_of(turn)
        return [
            turn.kind,
            think,
            turn.answer if turn.answer is not None else "" if think else turn.text,
        ]
    if turn.kind == "error":
        return ["error", "", turn.error or turn.text]
    return [turn.kind, "", [[o.start, o.end, len(o.times), o.tokens] for o in turn.observations]]


def render(
    title: str,
    records: Sequence[Mapping[str, Any]],
    *,
    other: Sequence[Mapping[str, Any]] | None = None,
    names: tuple[str, str] = ("first", "second"),
    served: bool = False,
) -> str:
    """The page.

    Args:
      title: of the page.
      records: see `record`.
      other: of a second checkpoint; joined by id, and shown side by side.
      names: of the two.
      served: records are briefs with a number `n`; the page asks its server for the rest.
    """
    second = {r["id"]: r for r in other or ()}
    rows = [{**r, "other": second.get(r["id"])} for r in records] if other is not None else records
    data = {"names": names if other is not None else None, "rows": list(rows)}
    # Inside a script element only "<" could end it or open a comment.
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    text = text.encode("utf-8", "replace").decode("utf-8").replace("\u2028", "\\u2028")
    main = tag(
        "main",
        tag("style", Markup(_asset("browser.css"))),
        tag(
            "header",
            tag("h1", title),
            tag("p", id="count", role="status", aria_live="polite"),
            tag("form", id="filters", role="search", aria_label="filters"),
        ),
        tag(
            "div",
            tag("div", tag("div", id="rows"), id="list", tabindex=0, role="listbox", aria_label="trajectories"),
            tag("article", id="detail", tabindex=-1, aria_live="off"),
            class_="panes",
        ),
        tag("noscript", "This page lists its trajectories with a script of its own; allow scripts to see them."),
        class_="browser",
    )  # fmt: skip
    block = Markup(f'<script type="application/json" id="data">{text}</script>')
    return document(title, main, block, code=_asset("browser.js"), connect=served)


@functools.cache
def _asset(name: str) -> str:
    return importlib.resources.files("vo3.viewer").joinpath(name).read_text("utf-8").strip()
