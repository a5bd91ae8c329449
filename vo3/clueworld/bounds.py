"""What one look can answer at best: the oracle bound of uniform frames at an agent's visual tokens.

    python -m vo3.clueworld.bounds [--scale=clueworld] [--worlds=200] [--json=FILE]

Two parts. Legibility: at which of three resolutions a digit can be read at all, measured with the reader of `vo3.clueworld.legibility` on frames of held-out worlds.
Bound: on the evaluation's questions, the share whose cards the uniform frames of the coarsest legible resolution happen to show; with every answer that they leave open guessed as
well as can be, from the digits that are seen, the options, and how questions are made. The oracle finds every frame, reads every digit and knows the order of the cards.

With the reader: the same for somebody who has a digit that is shown from one frame, as the reader has it: the best guess under how probable it holds each digit, with the options and how questions are made. A digit that is half
read still tells options apart, and mostly which of two digits is higher.

An agent may be compared with it where it looks at one clip a card: frames are counted at the visual tokens of an overview with one fine clip for questions on one card, with two
for questions on two. The bound is one of frames, not of models: a coarse frame that the reader half reads may serve a model better than a legible one that misses
the card, and the lines "with the reader" say how well. The last lines are of temporal grounding (`vo3.clueworld.bounded`). Resolutions are those of the baselines; a frame more is given where tokens do not divide.
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
from vo3.clueworld.bounded import bounded
from vo3.clueworld.evaluate import FIRST_SEED, questions_of
from vo3.clueworld.figures import Share
from vo3.clueworld.legibility import Reader, Readings, cut_cells, readings
from vo3.clueworld.scales import RESOLUTIONS, SCALES, VIEWS, Scale, get_scale, uniform
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


def chance(
    question: tasks.Question, task: Task, seen: set[str], read: Readings | None = None
) -> float:
    """How probable it is that the best answer is right, to somebody who sees the cards of the `seen` colours.

    Digits that are not seen are uniform among those that the question can have been made of; the answer that most of them lead to is given.

    Args:
      question, task: what is asked.
      seen: colours of cards.
      read: how digits that are seen are read: as cards with this digit were, one as probable as another; None: rightly.
    """
    known = [card.color in seen for card in question.looks]
    shape = (10,) * len(known)
    answers = [
        _answer(question, digits) for digits in itertools.product(range(10), repeat=len(known))
    ]
    given = sorted({a for a in answers if a and (not task.options or a in task.options.values())})
    # Whether these digits lead to this answer: [A, 10] or [A, 10, 10].
    leads = np.array([[a == answer for a in answers] for answer in given], float)
    leads = leads.reshape(len(given), *shape)
    exact = np.eye(10)
    truth = [
        exact[[c.digit]] if k else np.ones((1, 10))
        for c, k in zip(question.looks, known, strict=True)
    ]
    held = truth
    if read is not None:
        held = [
            read.of(c.digit) if k else t
            for c, k, t in zip(question.looks, known, truth, strict=True)
        ]
    true, believed = _weigh(leads, truth), _weigh(leads, held)
    best = np.isclose(believed, believed.max(-1, keepdims=True), rtol=1e-9, atol=0)
    best = best / best.sum(-1, keepdims=True)
    return float((best * true).sum(-1).mean() / true.sum())


def _weigh(leads: np.ndarray, held: Sequence[np.ndarray]) -> np.ndarray:
    """How much speaks for each answer, for every way in which the cards are read: [n, A] for one card, [n, m, A] for two."""
    if len(held) == 1:
        return np.einsum("ad,nd->na", leads, held[0])
    return np.einsum("ade,nd,me->nma", leads, *held, optimize=True)


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
    scale: Scale,
    height: int,
    width: int,
    worlds: Sequence[int],
    *,
    options: float = 0.5,
    read: Readings | None = None,
) -> list[Look]:
    """The tool questions of these worlds, under uniform frames of a size at the tokens of an agent with as many clips as cards; `read` at that size."""
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
    for name, size in RESOLUTIONS.items():
        found = looks(scale, *size, seeds, options=options, read=every[name])
        for quadrant in (tasks.SINGLE_TOOL, tasks.MULTI_TOOL):
            some = [look for look in found if look.quadrant == quadrant]
            share = readers[f"{name}: {quadrant}"] = float(np.mean([look.read for look in some]))
            shown = Share(sum(look.seen == look.cards for look in some), len(some))
            print(f"{name:7s} {quadrant:20s} shown {shown}; with the reader {100 * share:.1f} %")
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
