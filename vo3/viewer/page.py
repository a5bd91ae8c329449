"""One trajectory as one self-contained HTML page: no request leaves it, all text is escaped, scripts other than its own are refused."""

from __future__ import annotations

import functools
import importlib.resources
import math
import os
from collections.abc import Mapping

from vo3.rewards.answer import segment_pair
from vo3.rewards.grounding import Interval, overlap
from vo3.trajectory import Target, Task, Trajectory
from vo3.video import Clip
from vo3.viewer import story, timeline
from vo3.viewer.frame import frame
from vo3.viewer.markup import Markup, join, tag
from vo3.viewer.pictures import clock, rate

# What `Trajectory.outcome` means, for readers.
OUTCOMES = {
    "answered": "answered",
    "text": "ended without an answer tag",
    "refused": "gave no answer when asked for one",
    "exceeded": "ran out of turns, videos or context while still looking",
    "void": "ended without a usable answer",
}


@functools.cache
def _asset(name: str) -> str:
    return (
        importlib.resources.files("vo3.viewer").joinpath(name).read_text(encoding="utf-8").strip()
    )


# IoU of an answered time window with the true one, from which on it counts as right.
RIGHT_IOU = 0.5


def answered_window(trajectory: Trajectory) -> Interval | None:
    """The time window that was answered, ends in order; None where the answer is no window."""
    pair = None if trajectory.answer is None else segment_pair(trajectory.answer)
    if pair is None or not all(isinstance(x, int | float) for x in pair):
        return None
    try:
        start, end = sorted(map(float, pair))
    except OverflowError:  # a whole number of hundreds of digits
        return None
    return Interval(start, end) if math.isfinite(start) and math.isfinite(end) else None


def window_iou(trajectory: Trajectory) -> float | None:
    """IoU of the answered time window with the true one; None where the question does not ask for one."""
    target = trajectory.task.target
    if target is None or target.data_source != "temporal_grounding" or not target.clues:
        return None
    given = answered_window(trajectory)
    true = [Interval(clue.start, clue.end) for clue in target.clues]
    met = None if given is None else overlap([given], true)
    return 0.0 if met is None else met.iou


def judge(trajectory: Trajectory) -> bool | None:
    """Whether the answer is the true one: same letter, same words, or a time window that meets the true one. None when the truth is not known."""
    target = trajectory.task.target
    if (iou := window_iou(trajectory)) is not None:
        return iou >= RIGHT_IOU
    if target is None or not target.answer:
        return None
    if trajectory.answer is None:
        return False
    given, true = trajectory.answer.strip(), target.answer.strip()
    if trajectory.task.options and len(true) == 1:
        return given == true or given.startswith((f"({true})", f"{true}."))
    return given.casefold().rstrip(".") == true.casefold().rstrip(".")


def document(
    title: str,
    *body: Markup,
    script: bool = True,
    code: str | None = None,
    connect: bool = False,
    media: bool = False,
) -> str:
    """A complete page around `body`, with the style sheet and (if asked) the script inlined: `code`, or a trajectory page's.

    `connect` lets the script ask the page's own server, and no other; `media` lets it play a video that its reader chose.
    """
    code = (_asset("script.js") if script else "") if code is None else code
    return frame(title, *body, style=_asset("style.css"), script=code, connect=connect, media=media)


def render(trajectory: Trajectory, *, clips: Mapping[int, Clip] | None = None) -> str:
    """The page of one trajectory.

    Args:
      trajectory: a question with its turns.
      clips: observation index -> the frames shown; what is missing is described in words only.

    Returns:
      A whole HTML document, UTF-8.
    """
    main = tag("main", sections(trajectory, clips or {}))
    return document(trajectory.task.question or "A question on a video", main)


def sections(trajectory: Trajectory, clips: Mapping[int, Clip]) -> Markup:
    """What stands on the page of one trajectory; see `render`."""
    right = judge(trajectory)
    return join(
        _header(trajectory, right),
        timeline.draw(trajectory, clips),
        story.tell(trajectory, clips, right=right),
        _costs(trajectory),
        _facts(trajectory),
        story.prompts(trajectory),
    )


def video_name(task: Task) -> str:
    """The video's file name, or the first frame's folder."""
    first = task.video if isinstance(task.video, str) else (task.video[0] if task.video else "")
    return os.path.basename(first.rstrip("/")) or first


def _header(trajectory: Trajectory, right: bool | None) -> Markup:
    task = trajectory.task
    above = tag(
        "p",
        tag("span", video_name(task)),
        tag("span", clock(timeline.duration_of(trajectory))),
        class_="eyebrow",
    )
    options = None
    if task.options:
        options = tag(
            "ul", [_option(k, v, trajectory) for k, v in task.options.items()], class_="options"
        )
    return tag("header", above, tag("h1", task.question), options, _verdict(trajectory, right))


def _option(letter: str, text: str, trajectory: Trajectory) -> Markup:
    given = (trajectory.answer or "").strip()
    target: Target | None = trajectory.task.target
    chosen = given == letter or given.startswith((f"({letter})", f"{letter}."))
    true = target is not None and target.answer.strip() == letter
    notes = [note for note, holds in (("chosen", chosen), ("true", true)) if holds]
    return tag(
        "li",
        tag("b", letter),
        tag("span", text),
        tag("small", " and ".join(notes)) if notes else None,
        class_=" ".join(notes) or None,
    )


def _verdict(trajectory: Trajectory, right: bool | None) -> Markup:
    answer, target = trajectory.answer, trajectory.task.target
    options = trajectory.task.options or {}

    def worded(given: str) -> str:
        return f"{given}, {options[given]}" if given in options else given

    if answer is None:
        said = join("It ", OUTCOMES[trajectory.outcome], ".")
    else:
        said = join("It answered ", tag("strong", worded(answer)), ".")
        if trajectory.outcome != "answered":
            said = join(said, f" It {OUTCOMES[trajectory.outcome]}.")
    if right is None:
        return tag("p", said, class_="verdict")
    if right:
        return tag("p", said, " ", tag("span", "\u2713 right", class_="right"), class_="verdict")
    mark = tag("span", "\u2717 wrong", class_="wrong")
    return tag("p", said, " ", mark, f": the answer is {worded(target.answer)}.", class_="verdict")


def _costs(trajectory: Trajectory) -> Markup:
    """Tokens by what they were spent on, and seconds by turn."""
    observations = trajectory.observations
    overview = sum(o.tokens for o in observations if o.index == 0)
    clips = sum(o.tokens for o in observations if o.index != 0)
    assistant = [t for t in trajectory.turns if t.role == "assistant"]
    written = sum(len(t.ids) for t in assistant if t.ids is not None)
    counted = any(t.ids is not None for t in assistant)
    parts = [("overview", overview), ("clips", clips)] + ([("written", written)] if counted else [])
    total = max(sum(n for _, n in parts), 1)
    bar = tag(
        "div",
        [tag("i", class_=name, style=f"flex-grow:{n}") for name, n in parts if n],
        class_="bar",
        aria_hidden="true",
    )
    legend = tag(
        "ul",
        [
            tag(
                "li",
                tag("i", class_=name),
                f"{name} ",
                tag("b", f"{n:,}"),
                f" tokens, {100 * n / total:.0f}\u00a0%",
            )
            for name, n in parts
        ],
        class_="legend",
    )
    timed = [t for t in trajectory.turns if t.seconds is not None]
    longest = max([t.seconds for t in timed], default=0) or 1
    rows = [
        tag(
            "tr",
            tag("th", _named(turn), scope="row"),
            tag("td", f"{len(turn.ids):,}" if turn.ids is not None else _shown(turn)),
            tag("td", f"{turn.seconds:.2f} s"),
            tag(
                "td",
                tag("i", style=f"width:{100 * turn.seconds / longest:.1f}%"),
                aria_hidden="true",
            ),
        )
        for turn in timed
    ]
    table = None
    if rows:
        head = tag(
            "tr", [tag("th", name, scope="col") for name in ("turn", "tokens", "time")], tag("td")
        )
        whole = tag(
            "tr",
            tag("th", "all", scope="row"),
            tag("td", f"{total:,}"),
            tag("td", f"{sum(t.seconds for t in timed):.2f} s"),
            tag("td"),
        )
        table = tag("table", tag("thead", head), tag("tbody", rows), tag("tfoot", whole))
    heading = tag("h2", "What it cost", id="cost")
    return tag("section", heading, bar, legend, table, aria_labelledby="cost", class_="cost")


def _named(turn) -> str:
    return {"question": "overview", "observation": "clip", "call": "think and call"}.get(
        turn.kind, turn.kind
    )


def _shown(turn) -> str:
    return f"{sum(o.tokens for o in turn.observations):,}" if turn.observations else "\u2013"


def _facts(trajectory: Trajectory) -> Markup:
    task, first = trajectory.task, next(iter(trajectory.observations), None)
    facts = {
        "model": trajectory.model,
        "prompt pack": trajectory.prompt_pack,
        "video": task.video if isinstance(task.video, str) else f"{len(task.video)} frame files",
        "question id": task.id,
        "data source": task.target.data_source if task.target else None,
        "outcome": trajectory.outcome,
        "overview": f"{len(first.times)} frames, {rate(first.fps)}" if first else None,
    }
    facts |= {k.replace("_", " "): v for k, v in trajectory.meta.items()}
    rows = [
        tag("div", tag("dt", name), tag("dd", _fact(value)))
        for name, value in facts.items()
        if value not in (None, "", {}, [])
    ]
    return tag(
        "section",
        tag("h2", "Facts", id="facts"),
        tag("dl", rows),
        aria_labelledby="facts",
        class_="facts",
    )


def _fact(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k.replace('_', ' ')} {_fact(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_fact(v) for v in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
