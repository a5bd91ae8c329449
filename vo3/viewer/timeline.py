"""The picture of where the model looked: a film strip of the overview, windows on it, and each clip drawn out of its window."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from vo3.trajectory import Observation, Trajectory
from vo3.video import Clip
from vo3.viewer.markup import Markup, tag
from vo3.viewer.pictures import clock, data_uri, figure, window

COLORS = 6  # --c1 to --c6 in style.css
STRIP_WIDTH, STRIP_HEIGHT = 1080, 60  # CSS pixels the strip is laid out for
MAX_DRAWN = 4  # windows with frames drawn out of the strip
MIN_WINDOW = 0.35  # percent of the strip that even the shortest window covers


@dataclasses.dataclass(frozen=True)
class Look:
    """One clip on the timeline.

    Attributes:
      observation: what was shown.
      left, right: the window, percent of the video.
      color: 1 to `COLORS`, a colour of the style sheet.
    """

    observation: Observation
    left: float
    right: float
    color: int

    @property
    def centre(self) -> float:
        """Percent of the video."""
        return (self.left + self.right) / 2

    @property
    def name(self) -> str:
        """What it is, in words."""
        strategy = f", {self.observation.strategy}" if self.observation.strategy else ""
        return f"look {self.observation.index}: {window(self.observation.start, self.observation.end)}{strategy}"


def color_of(index: int) -> int:
    """The colour, 1 to `COLORS`, of observation `index` >= 1."""
    return (index - 1) % COLORS + 1


def duration_of(trajectory: Trajectory) -> float:
    """Seconds of the video, as far as the trajectory tells."""
    ends = [o.end for o in trajectory.observations] + [c.end for c in trajectory.calls]
    return max([*ends, 1e-6])


def looks_of(trajectory: Trajectory) -> list[Look]:
    """Every clip after the overview, in order of appearance."""
    total = duration_of(trajectory)
    looks = []
    for o in trajectory.observations:
        if o.index == 0 or o.media == "image":
            continue
        left = min(max(100 * o.start / total, 0.0), 100.0)
        right = min(max(100 * o.end / total, 0.0), 100.0)
        if right - left < MIN_WINDOW:
            left = min(max((left + right - MIN_WINDOW) / 2, 0.0), 100.0 - MIN_WINDOW)
            right = left + MIN_WINDOW
        looks.append(Look(o, left, right, color_of(o.index)))
    return looks


@dataclasses.dataclass(frozen=True)
class Cell:
    """One share of the film strip: which frame of the overview stands for it, and whether a narrow screen keeps it."""

    frame: int
    narrow: bool


def strip_cells(clip: Clip, *, prefer: Sequence[tuple[float, float]], total: float) -> list[Cell]:
    """The frames on the strip, one for each equal share of the video; an even number where there are enough.

    A share in which the model looked (or where evidence lies) is shown by the frame nearest to that window's middle, the others by the frame
    nearest to their own middle. A narrow screen keeps one of every two, the one that was looked at if any.

    Args:
      clip: the overview.
      prefer: windows in seconds, the most wanted first.
      total: seconds of the video.
    """
    aspect = clip.width / clip.height
    count = min(max(round(STRIP_WIDTH / (STRIP_HEIGHT * aspect)), 6), 24, len(clip.times))
    count -= count % 2 if count > 1 else 0
    length = total / count
    frames, looked = [], []
    for cell in range(count):
        low, high = cell * length, (cell + 1) * length
        middles = [m for m in ((start + end) / 2 for start, end in prefer) if low <= m < high]
        away = np.abs(clip.times - (middles[0] if middles else (low + high) / 2))
        # A frame of this share, if it has one: two neighbours never show the same frame for nothing.
        outside = (clip.times < low) | (clip.times >= high)
        frames.append(int(np.where(outside, away + total, away).argmin()))
        looked.append(bool(middles))
    keep = [c + 1 if looked[c + 1] and not looked[c] else c for c in range(0, count - 1, 2)] or [0]
    return [Cell(frame, cell in keep) for cell, frame in enumerate(frames)]


def place(centres: Sequence[float], width: float, gap: float) -> list[float]:
    """Left ends of boxes of one width, each as near to its centre as order, gaps and the borders 0 and 100 allow.

    `centres` ascend; everything in percent.
    """
    lefts: list[float] = []
    for centre in centres:
        wanted = min(max(centre - width / 2, 0.0), 100.0 - width)
        lefts.append(max(wanted, lefts[-1] + width + gap) if lefts else wanted)
    limit = 100.0 - width
    for i in reversed(range(len(lefts))):
        lefts[i] = max(min(lefts[i], limit), 0.0)
        limit = lefts[i] - width - gap
    return lefts


def draw(trajectory: Trajectory, clips: Mapping[int, Clip], *, over: bool = True) -> Markup:
    """The whole timeline as one section; `over`: whether there will be no more looks."""
    total = duration_of(trajectory)
    looks = looks_of(trajectory)
    target = trajectory.task.target
    clues = target.clues if target else ()
    prefer = [(k.observation.start, k.observation.end) for k in looks] + [
        (c.start, c.end) for c in clues
    ]
    windows = [
        tag(
            "span",
            tag("b", look.observation.index),
            class_=f"window c{look.color}",
            style=f"left:{look.left:.3f}%;width:{look.right - look.left:.3f}%",
            title=look.name,
        )
        for look in looks
    ]
    overview = clips.get(0)
    strip = tag(
        "div",
        _strip(overview, prefer, total),
        windows,
        class_="strip",
        data_duration=f"{total:.3f}",
    )
    heading = tag("h2", "Where it looked", id="timeline")
    said = (
        _spoken(looks, total)
        if looks or over
        else f"The whole video, {clock(total)}, is shown coarsely."
    )
    return tag(
        "section",
        heading,
        tag("p", said, class_="spoken"),
        tag("div", strip, _evidence(clues, total), _axis(total), class_="film"),
        _drawn_out(looks, clips),
        _legend(clues),
        aria_labelledby="timeline",
        class_="timeline",
    )


def _strip(overview: Clip | None, prefer, total: float) -> Markup:
    if overview is None:
        return tag("div", "the overview's frames are not at hand", class_="frames empty")
    cells = strip_cells(overview, prefer=prefer, total=total)
    images = [
        tag(
            "img",
            src=data_uri(overview.frames[cell.frame], width=240),
            alt="",
            title=clock(overview.times[cell.frame]),
            class_=None if cell.narrow else "wide",
        )
        for cell in cells
    ]
    label = f"{len(cells)} frames of the overview, in order"
    return tag("div", images, class_="frames", role="img", aria_label=label)


def _spoken(looks: list[Look], total: float) -> str:
    if not looks:
        return f"The overview of {clock(total)} was enough: no window was asked for."
    seen = sum(k.observation.end - k.observation.start for k in looks)
    share = 100 * seen / total
    times = "once" if len(looks) == 1 else "twice" if len(looks) == 2 else f"{len(looks)} times"
    return (
        f"The whole video, {clock(total)}, was shown coarsely. The model then looked again {times}, "
        f"at {seen:.3g}\u00a0s or {share:.2g}\u00a0% of it."
    )


def _axis(total: float) -> Markup:
    steps = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400)
    step = next((s for s in steps if total / s <= 7), 28800)
    # A tick too near to the end would run into the duration.
    ticks = [t for t in np.arange(0, total, step).tolist() if total - t > 0.06 * total]
    marks = [
        tag(
            "span",
            clock(t),
            style=f"left:{100 * t / total:.3f}%",
            class_="first" if t == 0 else None,
        )
        for t in ticks
    ]
    return tag(
        "div", marks, tag("span", clock(total), class_="last"), class_="axis", aria_hidden="true"
    )


def _evidence(clues, total: float) -> Markup | None:
    if not clues:
        return None
    bars = [
        tag(
            "i",
            style=f"left:{100 * c.start / total:.3f}%;width:{max(100 * (c.end - c.start) / total, MIN_WINDOW):.3f}%",
            title=f"true evidence: {window(c.start, c.end)}",
        )
        for c in clues
    ]
    return tag("div", bars, class_="evidence", aria_hidden="true")


def _legend(clues) -> Markup | None:
    if not clues:
        return None
    where = ", ".join(window(c.start, c.end) for c in clues)
    return tag("p", tag("i"), f"true evidence: {where}", class_="legend-evidence note")


def _drawn_out(looks: list[Look], clips: Mapping[int, Clip]) -> Markup | None:
    """Each clip's frames in a box below the strip, joined to its window by a funnel."""
    drawn = sorted((k for k in looks if k.observation.index in clips), key=lambda k: k.centre)
    if not 1 <= len(drawn) <= MAX_DRAWN:
        return None
    gap = 2.0
    width = (100 - gap * (len(drawn) - 1)) / len(drawn)
    lefts = place([k.centre for k in drawn], width, gap)
    funnels = [
        tag(
            "polygon",
            points=f"{k.left:.3f},0 {k.right:.3f},0 {left + width:.3f},40 {left:.3f},40",
            class_=f"c{k.color}",
        )
        for k, left in zip(drawn, lefts, strict=True)
    ]
    boxes = []
    for look in drawn:
        clip = clips[look.observation.index]
        shown = np.unique(
            np.linspace(0, len(clip.times) - 1, min(4, len(clip.times))).round().astype(int)
        )
        boxes.append(
            tag(
                "div",
                tag("p", tag("b", look.observation.index), look.name.split(": ", 1)[1]),
                tag(
                    "div",
                    [figure(clip.frames[i], clip.times[i], what=look.name) for i in shown],
                    class_="frames",
                ),
                class_=f"box c{look.color}",
            )
        )
    return tag(
        "div",
        tag("svg", funnels, viewBox="0 0 100 40", preserveAspectRatio="none", aria_hidden="true"),
        tag(
            "div",
            boxes,
            class_="boxes",
            style=f"grid-template-columns:repeat({len(boxes)},1fr);gap:{gap}%",
        ),
        class_=f"drawn n{len(boxes)}",
    )
