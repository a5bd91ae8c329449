"""Triplets on the synthetic world, with the truth behind each: what the oracle answers from, and what faults are measured against.

Kinds: `digit` (one clue, needs a look), `overview` (a question that the coarse view answers), `pair` (two clues: both must be
looked at) and `grounding` (when does a card show). A triplet's id is `SEED-KIND`, and everything about it follows from the id.

    python -m data_prep.sources.clueworld RUN/trajectories.jsonl --videos DIR --truth truth.jsonl

writes the videos that the rows of a run name, so that they can be trained on, and the world's own trajectories of the same questions.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from etils import epath

from data_prep.keys import draw
from data_prep.schema import Triplet, VideoInfo
from vo3.chat import PromptPack
from vo3.clueworld import tasks, trajectories
from vo3.clueworld.views import Sighting, crop_policy, observe, sightings
from vo3.clueworld.world import COLORS, FPS, HEIGHT, MIN_DURATION, WIDTH, Card, World, make_world
from vo3.trajectory import Clue, Target, Task, Trajectory
from vo3.viewer.story import think_of

SOURCE = "clueworld"
KINDS = ("digit", "overview", "pair", "grounding")
# Far from the seeds of tests, demos and evaluation, below those of training.
FIRST_SEED = 70_000
SHORTEST = 1.1 * MIN_DURATION  # seconds; hardly a world lasts less


@dataclasses.dataclass(frozen=True)
class Case:
    """A triplet with its truth.

    Attributes:
      triplet: as a sound source would give it.
      world: the video.
      kind: one of `KINDS`.
      said: what the last think states.
      needs: the cards that must be read closely; empty when the coarse view does.
      shows: the cards that the answer rests on.
      asked: the name of an overview question ("count", "exists", ...), else `kind`.
      question: as the world's tasks have it.
    """

    triplet: Triplet
    world: World
    kind: str
    said: str
    needs: tuple[Card, ...]
    shows: tuple[Card, ...]
    asked: str
    question: tasks.Question

    @property
    def task(self) -> Task:
        """The triplet as a task with its target."""
        t = self.triplet
        source = tasks.source_of(self.question)
        return Task(t.id, t.video, t.question, t.options, Target(t.answer, t.clues, source))


def triplets(
    *,
    limit: int,
    first_seed: int = FIRST_SEED,
    kinds: Sequence[str] = KINDS,
    longest: float = 0.0,
    wrong_answers: float = 0.0,
    fault_seed: int = 0,
) -> Iterator[Triplet]:
    """`limit` triplets, `len(kinds)` on each world.

    Args:
      limit: how many.
      first_seed: of the worlds.
      kinds: what is asked of each world.
      longest: seconds; worlds that last longer are left out. 0: none is.
      wrong_answers: share of triplets whose known answer is wrong, as sources have them.
      fault_seed: decides which.

    Raises:
      ValueError: an unknown kind, or a limit that no world keeps.
    """
    if 0 < longest < SHORTEST:
        raise ValueError(
            f"longest is {longest:g} s; give at least {SHORTEST:g}, there is hardly a shorter world"
        )
    if unknown := set(kinds) - set(KINDS):
        raise ValueError(f"unknown kinds {sorted(unknown)}; there are {KINDS}")
    seeds = (s for s in itertools.count(first_seed) if not longest or _world(s).duration <= longest)
    for seed, kind in itertools.islice(((s, k) for s in seeds for k in kinds), limit):
        triplet = case(f"{seed}-{kind}").triplet
        if has_wrong_answer(triplet.id, rate=wrong_answers, seed=fault_seed):
            triplet = spoiled(triplet)
        yield triplet


def has_wrong_answer(name: str, *, rate: float, seed: int) -> bool:
    """Whether the source gives this triplet a wrong answer."""
    return draw("fault", "answer", seed, name) < rate


def spoiled(triplet: Triplet) -> Triplet:
    """The triplet with a wrong answer, or for grounding a wrong interval."""
    if triplet.kind == "grounding":
        clue, duration = triplet.clues[0], triplet.info.duration
        # Half a video away, and still inside of it.
        length = clue.end - clue.start
        start = min((clue.start + duration / 2) % duration, duration - length)
        moved = Clue(start, start + length)
        return dataclasses.replace(triplet, clues=(moved,))
    if triplet.options:
        letters = list(triplet.options)
        wrong = letters[(letters.index(triplet.answer) + 1) % len(letters)]
    else:
        wrong = str((int(triplet.answer) + 3) % 10) if triplet.answer.isdigit() else ""
        if triplet.answer in COLORS:
            names = list(COLORS)
            wrong = names[(names.index(triplet.answer) + 1) % len(names)]
        wrong = wrong or {"yes": "no", "no": "yes"}[triplet.answer]
    return dataclasses.replace(triplet, answer=wrong)


@functools.lru_cache(maxsize=256)
def _world(seed: int) -> World:
    return make_world(seed)


@functools.lru_cache(maxsize=1024)
def case(name: str) -> Case:
    """The case of an id.

    Raises:
      ValueError: not an id of this source.
    """
    head, _, kind = name.partition("-")
    if not head.isdigit() or kind not in KINDS:
        raise ValueError(f"{name!r} is no id of the synthetic world; they read like 70000-digit")
    seed = int(head)
    world = _world(seed)
    rng = np.random.default_rng([0x5E3D, seed, KINDS.index(kind)])
    video = f"{seed}.mp4"
    info = VideoInfo(FPS, world.frames, HEIGHT, WIDTH)
    if kind == "grounding":
        question = tasks.KINDS["when"](world, rng)
        card = question.shown
        sight = seen(world, (card,))[0]
        triplet = Triplet(
            id=name, video=video, question=question.text, answer="", kind="grounding",
            clues=(Clue(sight.start, sight.end),), source=SOURCE, info=info,
        )  # fmt: skip
        said = f"the {card.color} card shows from {sight.start} to {sight.end}."
        return Case(triplet, world, kind, said, (), (card,), kind, question)
    asked = kind
    if kind == "pair":
        question = _pair(world, rng)
        needs = shows = question.looks
    elif kind == "digit":
        question = tasks.KINDS["digit"](world, rng)
        needs = shows = question.looks
    else:
        asked = str(rng.choice(tasks.OVERVIEW_KINDS))
        question = tasks.KINDS[asked](world, rng)
        needs = ()
        named = [c for c in world.cards if f" {c.color} " in question.text]
        ends = {"first": world.cards[:1], "last": world.cards[-1:], "exists": tuple(named)}
        shows = ends.get(asked, world.cards)
    task = tasks.make_task(
        world, question, video=video, task_id=name, rng=rng, options=bool(rng.random() < 0.6)
    )
    triplet = Triplet(
        id=name, video=video, question=task.question, answer=task.target.answer,
        options=task.options, source=SOURCE, info=info,
    )  # fmt: skip
    return Case(triplet, world, kind, question.said, needs, shows, asked, question)


@functools.cache
def _pack() -> PromptPack:
    return PromptPack.load("clueworld")


def _pair(world: World, rng: np.random.Generator) -> tasks.Question:
    """A question on two cards in order of appearance: their digits added up or, where that is more than a digit, compared; on one card where all digits are the same."""
    pairs = [(a, b) for i, a in enumerate(world.cards) for b in world.cards[i + 1 :]]
    order = [pairs[i] for i in rng.permutation(len(pairs))]
    added = [(a, b) for a, b in order if a.digit + b.digit <= 9]
    if added:
        return tasks.added(*added[0])
    differing = [(a, b) for a, b in order if a.digit != b.digit]
    return tasks.compared(*differing[0]) if differing else tasks.KINDS["digit"](world, rng)


def truth(one: Case) -> Trajectory:
    """The world's own trajectory of a case."""
    target = dataclasses.replace(one.task.target, answer=one.triplet.answer)
    return trajectories.make_trajectory(
        one.world, one.question, dataclasses.replace(one.task, target=target),
        pack=_pack(), policy=crop_policy(),
    )  # fmt: skip


def thinks(one: Case, windows: Sequence[Sequence[float]]) -> tuple[str, ...]:
    """The true think texts, one a look and one for the answer: those of the world's own trajectory.

    Where other windows are looked at than its own (a fault was planted, or clues were merged), the same words around those.
    """
    found = [think_of(turn) for turn in truth(one).turns if turn.role == "assistant"]
    if len(found) == len(windows) + 1:
        return tuple(found)
    named = trajectories.named(one.world)
    looks = tuple(f"{named} look at {a:.0f}-{b:.0f}." for a, b in windows)
    said = trajectories.stated(one.question, one.task)
    return (*looks, said if looks else f"{named} {said}")


def seen(world: World, cards: Sequence[Card] | None = None) -> list[Sighting]:
    """Where the coarse view shows these cards (all unless given): the windows a viewer would name."""
    overview = observe(world, 0, policy=crop_policy())
    found = sightings(world, overview)
    return [s for s in found if cards is None or s.card in cards]


def main(argv: Sequence[str] | None = None) -> int:
    """The command: see the module's text."""
    from vo3.clueworld.film import write_video

    parser = argparse.ArgumentParser(description="Videos and true trajectories of a run's rows.")
    parser.add_argument("rows", metavar="ROWS", help="trajectories.jsonl of a run on the world")
    parser.add_argument("--videos", metavar="DIR", help="write the videos that are not there")
    parser.add_argument("--truth", metavar="FILE", help="write the world's own trajectories")
    args = parser.parse_args(argv)
    rows = [
        Trajectory.loads(line) for line in epath.Path(args.rows).read_text().split("\n") if line
    ]
    cases = [case(row.task.id.removeprefix(f"{SOURCE}/")) for row in rows]
    if args.truth:
        own = (dataclasses.replace(truth(c), task=r.task) for c, r in zip(cases, rows, strict=True))
        epath.Path(args.truth).write_text("".join(t.dumps() + "\n" for t in own))
    made = 0
    for one in {c.triplet.video: c for c in cases}.values() if args.videos else ():
        path = epath.Path(args.videos) / one.triplet.video
        if not path.exists():
            write_video(one.world, path)
            made += 1
    print(f"{len(rows)} rows, {made} videos written")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
