"""The turns as a story: what the model thought, where it looked, what it saw, what it answered, and what each cost."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping

import numpy as np

from vo3.trajectory import VIDEO_MARK, Observation, Trajectory, Turn
from vo3.video import Clip
from vo3.viewer.markup import Markup, join, tag
from vo3.viewer.pictures import figure, rate, window
from vo3.viewer.timeline import color_of

_THINK = re.compile(r"<think>(.*?)</think>", re.DOTALL)
MAX_CLIP_FRAMES = 12  # of one clip, in the story
MAX_SHEET_FRAMES = 64  # of the overview, on the contact sheet


def think_of(turn: Turn) -> str:
    """The think text of an assistant's turn, stripped; empty when there is none."""
    return "\n".join(found.strip() for found in _THINK.findall(turn.text))


def tell(trajectory: Trajectory, clips: Mapping[int, Clip], *, right: bool | None) -> Markup:
    """Every turn after the system's, as an ordered story.

    Args:
      trajectory: what to tell.
      clips: observation index -> its frames, as far as they are at hand.
      right: whether the answer is the true one; None when the truth is not known.
    """
    steps = []
    number = 0
    for turn, after in itertools.zip_longest(trajectory.turns, trajectory.turns[1:]):
        if turn.kind == "system":
            continue
        number += turn.role == "assistant"
        got = after.observations[0].index if after is not None and after.observations else None
        steps.append(step(trajectory, turn, number, clips, got=got, right=right))
    return tag(
        "section",
        tag("h2", "How it got there", id="story"),
        tag("ol", steps),
        aria_labelledby="story",
        class_="story",
    )


def step(
    trajectory: Trajectory,
    turn: Turn,
    number: int,
    clips: Mapping[int, Clip],
    *,
    got: int | None = None,
    right: bool | None = None,
) -> Markup:
    """One entry of the story.

    Args:
      trajectory: that the turn belongs to.
      turn: what to tell.
      number: of the assistant's turns so far.
      clips: as for `tell`.
      got: the observation that the turn's call brought.
      right: as for `tell`.
    """
    if turn.role == "assistant":
        label, body = f"Turn {number}", _said(trajectory, turn, got=got, right=right)
    elif turn.kind == "error":
        reason = turn.error or turn.text
        label, body = (
            "Refused",
            tag("p", "The call could not be carried out: ", tag("q", reason), class_="error"),
        )
    elif turn.kind == "forced":
        note = tag("p", "No looks left: an answer was asked for.", class_="note")
        label = "Last turn"
        body = join(*(_seen(o, clips.get(o.index)) for o in turn.observations), note)
    else:
        label = "Shown"
        body = join(*(_seen(o, clips.get(o.index)) for o in turn.observations))
    cost = _cost(turn)
    margin = tag("div", tag("b", label), [tag("span", line) for line in cost], class_="margin")
    return tag("li", margin, tag("div", body, class_="body"), class_=f"turn-{turn.kind}")


def _cost(turn: Turn) -> list[str]:
    lines = []
    if turn.ids is not None:
        lines.append(f"{len(turn.ids):,} {'token' if len(turn.ids) == 1 else 'tokens'}")
    if turn.observations:
        lines.append(f"{sum(o.tokens for o in turn.observations):,} tokens")
    if turn.seconds is not None:
        lines.append(f"{turn.seconds:.2f} s")
    return lines


def _said(trajectory: Trajectory, turn: Turn, *, got: int | None, right: bool | None) -> Markup:
    think = think_of(turn)
    parts = [tag("p", think, class_="think") if think else None]
    if turn.call is not None:
        call = turn.call
        parts.append(
            tag(
                "p",
                None if got is None else tag("b", got),
                tag(
                    "span",
                    "looks at ",
                    tag("strong", window(call.start, call.end)),
                    f", {call.how}" if call.how else None,
                ),
                class_="call" if got is None else f"call c{color_of(got)}",
            )
        )
    elif turn.kind == "answer":
        parts.append(_answer(trajectory, turn.answer or "", right))
    elif not think:
        parts.append(tag("p", turn.text, class_="think"))
    if turn.stop == "length":
        parts.append(tag("p", "Cut off by the length limit.", class_="note"))
    verbatim = tag("details", tag("summary", "verbatim"), tag("pre", turn.text))
    return join(*parts, verbatim)


def _answer(trajectory: Trajectory, answer: str, right: bool | None) -> Markup:
    options = trajectory.task.options or {}
    text = f" {options[answer]}" if answer in options else None
    mark = None
    if right is not None:
        mark = tag(
            "span",
            "\u2713 right" if right else "\u2717 wrong",
            class_="right" if right else "wrong",
        )
    return tag("p", tag("strong", answer), text, mark, class_="final")


def _seen(observation: Observation, clip: Clip | None) -> Markup:
    o = observation
    size = f"{o.width}\u00a0\u00d7\u00a0{o.height}\u00a0pixels"
    if o.media == "image":
        what = f"an image, {size}, {o.tokens:,} tokens"
    else:
        span = "the whole video" if o.index == 0 else window(o.start, o.end)
        what = f"{span} in {len(o.times)} frames, {rate(o.fps)}, {size}: {o.tokens:,} tokens"
    caption = tag("p", what, class_="note")
    if clip is None:
        return caption
    if o.index == 0 and o.media != "image":
        frames = _spread(clip, MAX_SHEET_FRAMES)
        sheet = tag("div", [_picture(clip, i, "overview", 240) for i in frames], class_="sheet")
        count = (
            f"all {len(frames)} frames"
            if len(frames) == len(clip.times)
            else f"{len(frames)} of them"
        )
        return join(caption, tag("details", tag("summary", count), sheet, id="overview-frames"))
    frames = _spread(clip, MAX_CLIP_FRAMES)
    return join(
        caption,
        tag(
            "div",
            [_picture(clip, i, f"clip {o.index}", 480) for i in frames],
            class_=f"clip c{color_of(o.index)}",
        ),
    )


def _spread(clip: Clip, limit: int) -> np.ndarray:
    count = len(clip.times)
    return np.unique(np.linspace(0, count - 1, min(limit, count)).round().astype(int))


def _picture(clip: Clip, index: int, what: str, width: int) -> Markup:
    return figure(
        clip.frames[index], float(clip.times[index]), what=f"{what}, frame {index + 1}", width=width
    )


def prompts(trajectory: Trajectory) -> Markup:
    """The shown turns as they were worded, folded."""
    shown = [t for t in trajectory.turns if t.role != "assistant"]
    entries = [
        (tag("dt", t.kind), tag("dd", tag("pre", t.text.replace(VIDEO_MARK, "[video]"))))
        for t in shown
    ]
    return tag(
        "details", tag("summary", "the prompts, as worded"), tag("dl", entries), class_="prompts"
    )
