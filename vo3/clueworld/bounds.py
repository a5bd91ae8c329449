"""What one look can answer at best: the oracle bound of uniform frames at an agent's visual tokens.

    python -m vo3.clueworld.bounds [--scale=clueworld] [--worlds=200] [--json=FILE]

Two parts. Legibility: at which of three resolutions a digit can be read at all, measured with the reader of `vo3.clueworld.legibility` on frames of held-out worlds.
Bound: on the evaluation's questions, the share whose cards the uniform frames of the coarsest legible resolution happen to show; with every answer that they leave open guessed as
well as can be, from the digits that are seen, the options, and how questions are made. The oracle finds every frame, reads every digit and knows the order of the cards.

An agent may be compared with it where it looks at one clip a card: frames are counted at the visual tokens of an overview with one fine clip for questions on one card, with two
for questions on two. The bound is one of frames, not of models: a coarse frame that the reader half reads may serve a model better than a legible one that misses
the card, and the last lines of the output say how well. Resolutions are those of the baselines; a frame more is given where tokens do not divide.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Sequence

import numpy as np
from etils import epath

from vo3.clueworld import tasks
from vo3.clueworld.evaluate import FIRST_SEED, Share, questions_of
from vo3.clueworld.legibility import Reader, cut_cells, readings
from vo3.clueworld.scales import RESOLUTIONS, SCALES, Scale, get_scale, uniform
from vo3.clueworld.views import observe
from vo3.clueworld.world import HELD_OUT, World, make_world
from vo3.trajectory import Task

LEGIBLE = 0.95  # share of digits that must be read right
# Worlds of the legibility, apart from those of the bound.
READ_SEED = FIRST_SEED + 20_000
# Seconds of the duration's buckets, as in the evaluation's table.
BUCKETS = ((0, 600), (600, 1800), (1800, 3601))


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
    """

    quadrant: str
    kind: str
    seconds: int
    cards: int
    seen: int
    chance: float


@dataclasses.dataclass(frozen=True)
class Bound:
    """Of some questions: how many are decided by what is seen, and the oracle's expected share of right answers."""

    contained: Share
    right: float
    blind: float

    def with_reader(self, looks: Sequence[Look], read: Share) -> float:
        """The share right where every digit that is shown is read right as often as the reader does, and a miss is a wrong answer.

        Args:
          looks: the bound's.
          read: digits read right at this resolution.
        """
        p = read.right / read.total
        return float(np.mean([p**k.cards if k.seen == k.cards else k.chance for k in looks]))

    def __str__(self) -> str:
        return f"shown {self.contained}; oracle {100 * self.right:.1f} %; seeing nothing {100 * self.blind:.1f} %"


def chance(question: tasks.Question, task: Task, seen: set[str]) -> float:
    """How probable the best answer is to somebody who knows the digits on the cards of the `seen` colours.

    Digits that are not seen are uniform among those that the question can have been made of; the answer that most of them lead to is given.
    """
    total: dict[str, float] = {}
    ranges = [(card.digit,) if card.color in seen else range(10) for card in question.looks]
    for digits in itertools.product(*ranges):
        answer = _answer(question, digits)
        if answer is None or (task.options and answer not in task.options.values()):
            continue
        total[answer] = total.get(answer, 0.0) + 1.0
    return max(total.values()) / sum(total.values())


def _answer(question: tasks.Question, digits: Sequence[int]) -> str | None:
    """The answer, were these the digits; None where the question would not have been asked."""
    cards = [
        dataclasses.replace(card, digit=d) for card, d in zip(question.looks, digits, strict=True)
    ]
    if len(cards) == 1:
        return str(digits[0])
    if question.said.startswith("the sum"):
        return None if sum(digits) > 9 else tasks.added(*cards).answer
    return None if digits[0] == digits[1] else tasks.compared(*cards).answer


def looks(
    scale: Scale, height: int, width: int, worlds: Sequence[int], *, options: float = 0.5
) -> list[Look]:
    """The tool questions of these worlds, under uniform frames of a size at the tokens of an agent with as many clips as cards."""
    found = []
    policies = {
        clips: uniform(scale.policy, height, width, tokens=scale.tokens(clips)) for clips in (1, 2)
    }
    for seed in worlds:
        world = make_world(seed, config=scale.world)
        times = {c: np.asarray(observe(world, 0, policy=p).times) for c, p in policies.items()}
        for question, task in questions_of(
            world, "-", options=options, quadrants=(tasks.SINGLE_TOOL, tasks.MULTI_TOOL)
        ):
            at = times[len(question.looks)]
            seen = {c.color for c in question.looks if ((at >= c.start) & (at < c.end)).any()}
            found.append(
                Look(
                    tasks.source_of(question),
                    question.kind,
                    world.duration,
                    len(question.looks),
                    len(seen),
                    chance(question, task, seen),
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


def legibility(scale: Scale, *, worlds: int, frames: int) -> dict[str, Share]:
    """Digits read right at each resolution, on held-out worlds."""
    found = {}
    for name, (height, width) in RESOLUTIONS.items():
        reader = Reader(height, width, scale.world, frames=frames)
        rows = readings(reader, worlds=worlds, first_seed=READ_SEED)
        found[name] = Share(int((rows[:, 2] == rows[:, 3]).sum()), len(rows))
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
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scale", choices=sorted(SCALES), default="clueworld")
    parser.add_argument("--worlds", type=int, default=200, help="of the bound")
    parser.add_argument("--read", type=int, default=60, help="worlds of the legibility")
    parser.add_argument("--frames", type=int, default=300, help="frames of the reader's templates")
    parser.add_argument("--json", help="writes the figures here too")
    args = parser.parse_args(argv)
    if args.worlds < 1 or args.read < 1 or READ_SEED + args.read > HELD_OUT:
        raise SystemExit(f"--worlds and --read: at least 1, at most {HELD_OUT - READ_SEED}")
    scale = get_scale(args.scale)
    options = 0.5 if args.scale == "clueworld" else 0.0
    read = legibility(scale, worlds=args.read, frames=args.frames)
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
    print(
        "\nat every resolution; with the reader: digits that are shown are read as often as above"
    )
    seeds = range(FIRST_SEED, FIRST_SEED + args.worlds)
    readers = {}
    for name, size in RESOLUTIONS.items():
        found = table(scale, args.worlds, legible=name, options=options)
        every = looks(scale, *size, seeds, options=options)
        for quadrant in (tasks.SINGLE_TOOL, tasks.MULTI_TOOL):
            some = [look for look in every if look.quadrant == quadrant]
            share = found[quadrant].with_reader(some, read[name])
            readers[f"{name}: {quadrant}"] = share
            shown = found[quadrant].contained
            print(f"{name:7s} {quadrant:20s} shown {shown}; with the reader {100 * share:.1f} %")
    if args.json:
        plain = {
            "legibility": {n: dataclasses.asdict(s) for n, s in read.items()},
            "legible": legible,
            "with the reader": readers,
            "bounds": {n: dataclasses.asdict(b) for n, b in rows.items()},
        }
        epath.Path(args.json).write_text(json.dumps(plain, indent=1) + "\n")


if __name__ == "__main__":
    main()
