"""What one look can answer at best: the oracle bound of uniform frames at an agent's visual tokens.

    python -m vo3.clueworld.bounds [--scale=clueworld] [--worlds=200] [--json=FILE]

Two parts. Legibility: at which of three resolutions a digit can be read at all, measured with the reader of `vo3.clueworld.legibility` on frames of held-out worlds.
Bound: on the evaluation's questions, the share whose cards the uniform frames of the coarsest legible resolution happen to show; with every answer that they leave open guessed as
well as can be, from the digits that are seen, the options, and how questions are made. The oracle finds every frame, reads every digit and knows the order of the cards.

With the reader: the same for somebody who has a digit that is shown from one frame, as the reader has it: the best guess under how probable it holds each digit, with the options and how questions are made. A digit that is half
read still tells options apart, and mostly which of two digits is higher.

An agent may be compared with it where it looks at one clip a card: frames are counted at the visual tokens of an overview with one fine clip for questions on one card, with two
for questions on two. Baselines have the tokens of two clips on every question: their frames are counted apart. The bound is one of frames, not of models: a coarse frame that the reader half reads may serve a model better than a legible one that misses
the card, and the lines "with the reader" say how well. The last lines are of temporal grounding (`vo3.clueworld.bounded`). Resolutions are those of the baselines; a frame more is given where tokens do not divide.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
from collections.abc import Callable, Sequence

import numpy as np
from etils import epath

from vo3.clueworld import tasks
from vo3.clueworld.bounded import bounded
from vo3.clueworld.evaluate import FIRST_SEED, questions_of
from vo3.clueworld.figures import BUCKETS, Share
from vo3.clueworld.guess import chance
from vo3.clueworld.legibility import Reader, Readings, cut_cells, readings
from vo3.clueworld.scales import CLIPS, RESOLUTIONS, SCALES, VIEWS, Scale, get_scale, uniform
from vo3.clueworld.views import observe
from vo3.clueworld.world import HELD_OUT, World, make_world

LEGIBLE = 0.95  # share of digits that must be read right
# Worlds of the legibility, apart from those of the bound.
READ_SEED = FIRST_SEED + 20_000


@dataclasses.dataclass(frozen=True)
class Look:
    """One question under one resolution.

    Attributes:
      quadrant: of the question.
      kind: of the question, as it is asked.
      seconds: of the video.
      cards: cards whose digits are asked for.
      seen: those of them that a frame shows.
      chance: of the best answer, 1 when all are seen.
      read: of the best answer of somebody who reads what is seen as well as the reader; `chance` without one.
    """

    quadrant: str
    kind: str
    seconds: int
    cards: int
    seen: int
    chance: float
    read: float


@dataclasses.dataclass(frozen=True)
class Bound:
    """Of some questions: how many are decided by what is seen, and the oracle's expected share of right answers."""

    contained: Share
    right: float
    blind: float

    def __str__(self) -> str:
        return f"shown {self.contained}; oracle {100 * self.right:.1f} %; seeing nothing {100 * self.blind:.1f} %"


def looks(
    scale: Scale,
    height: int,
    width: int,
    worlds: Sequence[int],
    *,
    options: float = 0.5,
    read: Readings | None = None,
    clips: int = 0,
) -> list[Look]:
    """The tool questions of these worlds, under uniform frames of a size.

    Args:
      scale: of the worlds.
      height, width: of the frames.
      worlds: seeds.
      options: share of questions with options.
      read: how digits are read at that size; None: rightly.
      clips: frames are at the tokens of an agent with so many; 0: with as many as the question has cards.
    """
    found = []
    policies = {
        cards: uniform(scale.policy, height, width, tokens=scale.tokens(clips or cards))
        for cards in (1, 2)
    }
    for seed in worlds:
        world = make_world(seed, config=scale.world)
        times = {c: np.asarray(observe(world, 0, policy=p).times) for c, p in policies.items()}
        for question, task in questions_of(
            world, "-", options=options, quadrants=(tasks.SINGLE_TOOL, tasks.MULTI_TOOL)
        ):
            at = times[len(question.looks)]
            seen = {c.color for c in question.looks if ((at >= c.start) & (at < c.end)).any()}
            best = chance(question, task, seen)
            found.append(
                Look(
                    tasks.source_of(question),
                    question.kind,
                    world.duration,
                    len(question.looks),
                    len(seen),
                    best,
                    best if read is None else chance(question, task, seen, read),
                )
            )
    return found


def bound(some: Sequence[Look], blind: Sequence[float]) -> Bound:
    """The bound of one or more questions; `blind` are their chances with nothing seen."""
    whole = sum(look.seen == look.cards for look in some)
    right = float(np.mean([look.chance for look in some]))
    return Bound(Share(whole, len(some)), right, float(np.mean(blind)))


def table(scale: Scale, worlds: int, *, legible: str, options: float = 0.5) -> dict[str, Bound]:
    """Bounds by quadrant, kind and duration at the resolution `legible`."""
    seeds = range(FIRST_SEED, FIRST_SEED + worlds)
    some = looks(scale, *RESOLUTIONS[legible], seeds, options=options)
    blind = _blind(scale, seeds, options)
    rows: dict[str, Callable[[Look], bool]] = {}
    for quadrant in (tasks.SINGLE_TOOL, tasks.MULTI_TOOL):
        rows[quadrant] = lambda look, q=quadrant: look.quadrant == q
        for kind in tasks.QUADRANTS[quadrant]:
            rows[f"{quadrant}: {kind}"] = lambda look, k=kind, q=quadrant: (
                look.kind == k and look.quadrant == q
            )
        for low, high in BUCKETS:
            rows[f"{quadrant}: {low // 60} to {high // 60} minutes"] = (
                lambda look, q=quadrant, a=low, b=high: look.quadrant == q and a <= look.seconds < b
            )
    found = {}
    for name, wanted in rows.items():
        picks = [i for i, look in enumerate(some) if wanted(look)]
        if picks:
            found[name] = bound([some[i] for i in picks], [blind[i] for i in picks])
    return found


def _blind(scale: Scale, seeds: Sequence[int], options: float) -> list[float]:
    """The chance of each question for somebody who sees nothing, in the order of `looks`."""
    quadrants = (tasks.SINGLE_TOOL, tasks.MULTI_TOOL)
    worlds: list[World] = [make_world(seed, config=scale.world) for seed in seeds]
    return [
        chance(question, task, set())
        for world in worlds
        for question, task in questions_of(world, "-", options=options, quadrants=quadrants)
    ]


def legibility(scale: Scale, *, worlds: int, frames: int) -> dict[str, Readings]:
    """How digits are read at each resolution, on held-out worlds."""
    found = {}
    for name, (height, width) in RESOLUTIONS.items():
        reader = Reader(height, width, scale.world, frames=frames)
        found[name] = readings(reader, worlds=worlds, first_seed=READ_SEED)
    return found


def coarsest(read: dict[str, Share]) -> str:
    """The first resolution at which `LEGIBLE` of the digits are read.

    Raises:
      ValueError: none is.
    """
    for name in RESOLUTIONS:
        if read[name].right >= LEGIBLE * read[name].total:
            return name
    raise ValueError(f"no resolution reads {LEGIBLE:.0%} of the digits: {read}; enlarge them")


def main(argv: list[str] | None = None) -> None:
    """Measures and prints; ends in one line where it cannot."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scale", choices=sorted(SCALES), default="clueworld")
    parser.add_argument("--worlds", type=int, default=200, help="of the bound")
    parser.add_argument("--read", type=int, default=60, help="worlds of the legibility")
    parser.add_argument("--frames", type=int, default=300, help="frames of the reader's templates")
    parser.add_argument("--json", help="writes the figures here too")
    args = parser.parse_args(argv)
    for name, first in (("worlds", FIRST_SEED), ("read", READ_SEED)):
        if not 1 <= (number := getattr(args, name)) <= HELD_OUT - first:
            raise SystemExit(f"--{name} is {number}: at least 1, at most {HELD_OUT - first}")
    if args.frames < 1:
        raise SystemExit(f"--frames is {args.frames}: templates are made from at least one")
    try:
        measure(args)
    except ValueError as error:
        raise SystemExit(f"bounds: {error}") from error


def measure(args: argparse.Namespace) -> None:
    """Prints all parts, and writes them to `args.json`.

    Raises:
      ValueError: too few worlds or frames for a figure.
    """
    scale = get_scale(args.scale)
    options = 0.5 if args.scale == "clueworld" else 0.0
    every = legibility(scale, worlds=args.read, frames=args.frames)
    read = {name: Share(some.right, some.total) for name, some in every.items()}
    for name, (height, width) in RESOLUTIONS.items():
        cut = functools.partial(cut_cells, height, width, scale.world)
        print(
            f"{name:7s} {width:3d} x {height:2d}: digits read {read[name]}; "
            f"cut by a patch's border {cut(side=14)['any']:.0%} of places, by a token's {cut(side=28)['any']:.0%}"
        )
    legible = coarsest(read)
    print(f"\nuniform frames, {legible}, the coarsest legible, at an agent's visual tokens")
    rows = table(scale, args.worlds, legible=legible, options=options)
    for name, row in rows.items():
        print(f"{name:42s} {row}")
    print("\nat every resolution; with the reader: the best guess from what the reader makes of it")
    seeds = range(FIRST_SEED, FIRST_SEED + args.worlds)
    readers = {}
    for clips, whose in ((0, "an agent's"), (CLIPS, "a baseline's")):
        print(f"at {whose} tokens")
        for name, size in RESOLUTIONS.items():
            found = looks(scale, *size, seeds, options=options, read=every[name], clips=clips)
            for quadrant in (tasks.SINGLE_TOOL, tasks.MULTI_TOOL):
                some = [look for look in found if look.quadrant == quadrant]
                share = float(np.mean([look.read for look in some]))
                readers[f"{whose}: {name}: {quadrant}"] = share
                shown = Share(sum(look.seen == look.cards for look in some), len(some))
                print(
                    f"{name:7s} {quadrant:20s} shown {shown}; with the reader {100 * share:.1f} %"
                )
    print("\ntemporal grounding: the seconds of cards as frames bound them")
    seconds = {}
    for view in VIEWS:
        found = bounded(scale, view, seeds, options=options).values
        enough = Share(sum(iou >= 0.3 for iou in found.values()), len(found))
        seconds[view] = float(np.mean(list(found.values())))
        print(f"{view:12s} IoU >= 0.3 {enough}; mean IoU {seconds[view]:.3f}")
    if args.json:
        plain = {
            "legibility": {n: dataclasses.asdict(s) for n, s in read.items()},
            "legible": legible,
            "with the reader": readers,
            "grounding, mean IoU": seconds,
            "bounds": {n: dataclasses.asdict(b) for n, b in rows.items()},
        }
        epath.Path(args.json).write_text(json.dumps(plain, indent=1) + "\n")


if __name__ == "__main__":
    main()
